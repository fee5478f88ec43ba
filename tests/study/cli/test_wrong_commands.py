"""What is wrong with a command is one message and exit code 2, before anything is started."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from study.cli.edge import check_name
from study.cli.main import main
from study.errors import UserError
from study.operations.restore import restore_backup
from study.spec.files import parse_study
from study.store.archive import FORMAT, export_study
from study.store.lease import owner_identity
from study.store.store import StudyStore
from tests.support.study_files import minimal

FILE = minimal()


def refused(home: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The message of a command that is refused."""
    for name in ("AGFT_STUDY_DB", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AGFT_HOME", str(home))
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == 2, done.output
    assert not isinstance(done.exception, Exception), done.exception
    assert not (home / "secrets.json").exists(), "no service was started"
    return done.output.strip()


@pytest.mark.parametrize(
    "command",
    [["run"], ["submit", "--address", "http://127.0.0.1:9"]],
    ids=lambda command: command[0],
)
@pytest.mark.parametrize("name", ["Small", "with space", "a" * 64])
def test_a_name_that_is_none(tmp_path, monkeypatch, command, name):
    (tmp_path / "study.yaml").write_text(FILE)
    told = refused(tmp_path / "home", monkeypatch, *command, str(tmp_path / "study.yaml"), "--name", name)
    rule = "at most 63 lower case letters, digits, . _ -, the first one a letter or digit"
    assert told == f"name: {name!r}: a study's name is {rule}"


PLACES = [
    ("FILE", ["init", "{}"]), ("FILE", ["validate", "{}"]), ("FILE", ["run", "{}"]), ("FILE", ["plan", "{}"]),
    ("--name", ["run", "study.yaml", "--name", "{}"]), ("STUDY", ["status", "{}"]), ("STUDY", ["promote", "{}"]),
    ("--out", ["import", "x.pt", "--arch", "ViT-B-32", "--out", "{}"]), ("FILE", ["import", "{}"]),
    ("--base", ["import", "x.pt", "--arch", "ViT-B-32", "--base", "{}", "--out", "y.safetensors"]),
    ("--out", ["interpolate", "x.safetensors", "--out", "{}"]), ("ROBUST", ["interpolate", "{}", "--out", "y"]),
    ("MODELS", ["evaluate", "{}"]), ("--label", ["evaluate", "tiny-clip", "--label", "{}"]),
    ("--out", ["evaluate", "tiny-clip", "--out", "{}"]), ("--suite", ["evaluate", "tiny-clip", "--suite", "{}"]),
    ("PLACE", ["backup", "{}"]), ("--objects", ["backup", "x", "--objects", "{}"]), ("OUT", ["export", "x", "{}"]),
    ("NAMES", ["data", "prepare", "{}"]), ("--to", ["data", "prepare", "cifar10", "--to", "{}"]),
    ("FILE", ["archive", "small", "{}"]), ("NAME", ["models", "{}"]), ("TARGET", ["report", "{}"]),
]  # fmt: skip
everywhere = pytest.mark.parametrize(
    ("where", "command"), PLACES, ids=lambda value: value if isinstance(value, str) else " ".join(value[:1])
)


@pytest.mark.parametrize("name", ["", "a" * 101, "a" * 300, "a" * 5000], ids=len)
@everywhere
def test_a_name_that_is_empty_or_too_long_is_one_message_wherever_it_is_given(
    tmp_path, monkeypatch, where, command, name
):
    monkeypatch.chdir(tmp_path)
    for text in [name] if not name else [name, f"folder/{name}/x.yaml"]:
        told = refused(tmp_path / "home", monkeypatch, *(each.format(text) for each in command))
        shown = f"{'a' * 20}... has {len(name)}" if name else "this one is empty"
        assert told.casefold() == f"{where}: a name has 1 to 100 characters; {shown}".casefold()


@pytest.mark.parametrize(
    ("name", "rule"),
    [("\N{GRINNING FACE}" * 100, "a name has at most 200 bytes; \N{GRINNING FACE}"), ("\u754c" * 90, "... has 270"),
     ("/".join(["a" * 90] * 60), "a path has at most 1,000 characters; aaaaaaaaaaaaaaaaaaaa... has 5,459"),
     ("a\0b", "a name is text that can be printed, not 'a\\x00b'"), ("a\nb", "not 'a\\nb'"),
     ("\udcff", "not '\\udcff'")],
    ids=["4 bytes each", "3 bytes each", "60 parts", "null", "two lines", "no text"],
)  # fmt: skip
@everywhere
def test_a_name_that_no_file_system_or_terminal_takes_is_one_message(tmp_path, monkeypatch, where, command, name, rule):
    monkeypatch.chdir(tmp_path)
    told = refused(tmp_path / "home", monkeypatch, *(each.format(name) for each in command))
    assert told.casefold().startswith(f"{where}: ".casefold())
    assert rule in told


def test_a_long_name_of_something_that_is_here_and_an_address_are_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    long = tmp_path / ("a" * 200 + ".yaml")
    long.write_text(FILE)
    assert CliRunner().invoke(main, ["validate", str(long)]).exit_code == 0
    for text in (f"s3://bucket/{'k' * 300}", "x" * 100, f"folder:{long}", str(long)):
        check_name(text, "PLACE")


@pytest.mark.parametrize(
    "command",
    [["status"], ["resume"], ["pause"], ["stop"], ["extend", "--trials", "1"], ["rerun", "1"], ["drop", "1"],
     ["delete", "--yes"], ["archive", "x.json"], ["report"], ["logs"], ["promote"]],
    ids=lambda command: command[0],
)  # fmt: skip
def test_a_study_that_there_is_not(tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    told = refused(tmp_path / "home", monkeypatch, command[0], "smal", *command[1:])
    assert told == "no study 'smal'; known: none yet"


def test_an_archive_that_is_none(tmp_path, monkeypatch):
    store = StudyStore(f"sqlite:///{tmp_path}/there.db", "small")
    store.create(parse_study(FILE, source="study.yaml"))
    export_study(store, tmp_path / "a.json")
    content = json.loads((tmp_path / "a.json").read_text())
    epoch = {"study": "small", "number": 0, "epoch": 1, "record": {"epoch": 1}}
    for wrong in (
        {**content, "rows": None}, {"format": FORMAT, "study": content["study"]}, {**content, "study": 1},
        {**content, "rows": {**content["rows"], "agft_epoch": [epoch]}},
        {**content, "rows": {**content["rows"], "agft_request": [{"study": "small", "kind": "drop"}]}},
    ):  # fmt: skip
        (tmp_path / "a.json").write_text(json.dumps(wrong))
        assert "cannot be read" in refused(tmp_path / "home", monkeypatch, "restore", str(tmp_path / "a.json"))
    (tmp_path / "a.json").write_text(json.dumps(content))
    told = refused(tmp_path / "home", monkeypatch, "restore", str(tmp_path / "a.json"), "--name", "No")
    assert told.startswith("name: 'No'")


@pytest.mark.parametrize("command", ["run", "resume"])
def test_a_study_that_is_driven_here_is_not_driven_twice(tmp_path, monkeypatch, command):
    store = StudyStore(f"sqlite:///{tmp_path}/home/studies.db", "small")
    (tmp_path / "study.yaml").write_text(FILE)
    store.create(parse_study(FILE, source="study.yaml"))
    store.acquire(owner_identity())
    target = str(tmp_path / "study.yaml") if command == "run" else "small"
    told = refused(tmp_path / "home", monkeypatch, command, target)
    assert told.splitlines()[-1].endswith("one driver at a time")


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate((1 << 30) + 1)


def nested(path: Path) -> None:
    path.write_text("[" * 200_000)


@pytest.mark.parametrize(
    ("make", "rule"),
    [(huge, "1,073,741,825 bytes; at most 1,073,741,824"), (nested, "not a JSON file: "), (os.mkfifo, "a folder, pipe"),
     (Path.touch, "not a JSON file: "), (lambda path: path.write_bytes(b"\xff\xfe"), "not a JSON file: ")],
    ids=["huge", "nested", "a pipe", "empty", "no text"],
)  # fmt: skip
def test_an_archive_of_a_study_that_no_machine_should_read(tmp_path, monkeypatch, make, rule):
    make(tmp_path / "x.json")
    told = refused(tmp_path / "home", monkeypatch, "restore", str(tmp_path / "x.json"))
    assert told.startswith(f"{tmp_path / 'x.json'}: ")
    assert rule in told


def backup_of(path: Path, name: str, size: int, *, content: bytes = b"") -> None:
    """A tar with one member, which says that it is so large and is all holes."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    path.write_bytes(entry.tobuf() + content)
    with path.open("r+b") as file:
        file.truncate(512 + (size + 511) // 512 * 512 + 1024)


@pytest.mark.parametrize(
    ("size", "content", "rule"),
    [((1 << 30) + 1, b"", "backup.json has 1,073,741,825 bytes; at most 1,073,741,824"),
     (200_000, b"[" * 200_000, "not a backup written by `agft backup`"),
     (100, b"", "not a backup written by `agft backup`")],
    ids=["huge", "nested", "zeros"],
)  # fmt: skip
def test_a_backup_that_no_machine_should_read(tmp_path, size, content, rule):
    backup_of(tmp_path / "x.tar", "backup.json", size, content=content)
    with pytest.raises(UserError, match=rule):
        restore_backup(f"sqlite:///{tmp_path}/x.db", "bucket", str(tmp_path / "x.tar"), objects=None,
                       tracking_uri=None, say=print)  # fmt: skip
    assert not (tmp_path / "x.db").exists()
