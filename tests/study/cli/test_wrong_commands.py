"""What is wrong with a command is one message and exit code 2, before anything is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from study.cli.main import main
from study.spec.files import parse_study
from study.store.archive import FORMAT
from study.store.lease import owner_identity
from study.store.store import StudyStore

FILE = """\
name: small
method: {name: agft}
model: {arch: tiny-clip, pretrained: bundled}
data: {train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}
search: {method.scale_ratio: {low: 0.2, high: 1.0}}
budget: {trials: 4}
"""


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
@pytest.mark.parametrize("name", ["Small", "with space", "a" * 64, ""])
def test_a_name_that_is_none(tmp_path, monkeypatch, command, name):
    (tmp_path / "study.yaml").write_text(FILE)
    told = refused(tmp_path / "home", monkeypatch, *command, str(tmp_path / "study.yaml"), "--name", name)
    rule = "at most 63 lower case letters, digits, . _ -, the first one a letter or digit"
    assert told == f"name: {name!r}: a study's name is {rule}"


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
    spec = parse_study(FILE, source="study.yaml")
    content = {"format": FORMAT, "study": {"name": "small", "spec": spec.canonical()}, "rows": {}}
    for wrong in ({**content, "rows": None}, {"format": FORMAT, "study": content["study"]}, {**content, "study": 1}):
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
