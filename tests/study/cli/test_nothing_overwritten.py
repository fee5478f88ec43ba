"""What a command writes never takes the place of a file that somebody else put there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from study.cli.main import main
from study.operations.backup import is_backup, write_backup
from study.store.archive import is_archive
from study.store.store import StudyStore
from tests.support.hand import measured
from tests.support.light import light_study

ACCOUNTS = "root:x:0:0:root:/root:/bin/bash\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With one study, and no service running."""
    for name in ("AGFT_STUDY_DB", "AWS_ENDPOINT_URL", "MLFLOW_TRACKING_URI", "AGFT_BUCKET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AGFT_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    measured(f"sqlite:///{tmp_path}/home/studies.db", light_study("small"))
    return tmp_path


def says(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, done.output


WRITERS: dict[str, Callable[[str], tuple[str, ...]]] = {
    "archive": lambda file: ("archive", "small", file),
    "backup": lambda file: ("backup", file),
    "stack env": lambda file: ("stack", "env", file),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("more", [(), ("--replace",)], ids=["plain", "with --replace"])
def test_a_file_of_another_kind_stays_and_nothing_is_started(home: Path, writer: str, more: tuple[str, ...]) -> None:
    file = home / "passwd"
    file.write_text(ACCOUNTS)
    code, said = says(*WRITERS[writer](str(file)), *more)
    assert code == 2
    assert "is there already, and is not" in " ".join(said.split())
    assert file.read_text() == ACCOUNTS
    assert not (home / "home" / "stack").exists()


def test_an_older_archive_is_replaced_when_that_is_asked_for(home: Path) -> None:
    file = home / "small.json"
    assert says("archive", "small", str(file))[0] == 0
    assert is_archive(file)
    before = file.read_bytes()
    code, said = says("archive", "small", str(file))
    assert (code, file.read_bytes()) == (2, before)
    assert "or --replace it" in said
    assert says("archive", "small", str(file), "--replace")[0] == 0
    link = home / "link.json"
    link.symlink_to(home / "nowhere")
    assert says("archive", "small", str(link))[0] == 2, "a link that leads nowhere is there, too"


def test_a_backup_is_known_by_what_is_in_it(home: Path, stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    file = home / "all.tar"
    database = StudyStore(f"sqlite:///{home}/home/studies.db", "small").url
    write_backup(database, stack.bucket, str(file), objects=None, say=lambda line: None)
    assert is_backup(file)
    (home / "other.tar").write_bytes(b"\0" * 10240)
    assert not is_backup(home / "other.tar")
