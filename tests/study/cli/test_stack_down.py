"""`agft stack down` beside a study that runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from study.cli.main import main
from study.store.lease import owner_identity
from study.store.store import StudyStore
from tests.support.light import light_study


def says(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, " ".join(done.output.split())


def test_services_are_not_stopped_under_a_running_study_unless_forced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGFT_STUDY_DB", raising=False)
    monkeypatch.setenv("AGFT_HOME", str(tmp_path))
    assert says("stack", "down")[0] == 0
    assert list(tmp_path.glob("*.db")) == [], "looking for studies makes no database"
    stores = [StudyStore(f"sqlite:///{tmp_path}/studies.db", name) for name in ("first", "second")]
    for store in stores:
        store.create(light_study(store.name))
    token = stores[1].acquire(owner_identity())

    code, said = says("stack", "down")
    assert code == 2
    assert "study 'second' runs on these services; nothing was stopped. First: agft pause second." in said
    assert "stopped 0 processes" in says("stack", "down", "--force")[1]

    stores[1].release(token, "paused")
    assert says("stack", "down")[0] == 0
    host, pid, _, numbering = owner_identity().split("|")
    stores[0].acquire(f"{host}|{pid}|1.00|{numbering}")
    assert says("stack", "down")[0] == 0, "its driver is dead: that process number is another process now"


def test_a_database_that_does_not_answer_keeps_nobody_from_stopping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AGFT_STUDY_DB", raising=False)
    monkeypatch.setenv("AGFT_HOME", str(tmp_path))
    (tmp_path / "studies.db").write_text("no database")
    code, said = says("stack", "down")
    assert code == 0
    assert "whether a study runs is not known" in said
