"""An epoch may take hours: a trial that says it is at work is left alone, and one that hangs is still found."""

from __future__ import annotations

import pytest

from study.store.store import StudyStore
from tests.support.light import Plan, drive, light_cluster, light_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

SILENCE_SECONDS = 20


def test_signs_of_life_keep_a_long_epoch_and_silence_ends_a_hung_one(stack, tmp_path, monkeypatch):
    monkeypatch.setattr("study.driver.driver.SIGN_SAID_SECONDS", 10.0)
    database, said, shown = f"sqlite:///{tmp_path}/studies.db", [], []

    def say(line: str) -> None:
        said.append(line)
        if "training" in line:
            shown.append(StudyStore(database, "long").signs())

    resources = {"silence": SILENCE_SECONDS}
    spec = light_study("long", scheduler={"name": "none"}, budget={"trials": 2}, resources=resources)
    plan = Plan(faults={0: "long", 1: "hang-once"}, long_seconds=4 * SILENCE_SECONDS)
    with light_cluster(stack, tmp_path / "home") as cluster:
        outcome = drive(spec, plan, database=database, cluster=cluster, services=stack, say=say)
    assert outcome.state == "finished"
    assert [row.state for row in outcome.trials] == ["complete", "complete"]
    silent = [line for line in said if "has said nothing for too long" in line]
    assert silent
    assert all(line.startswith("trial   1") for line in silent), "trial 0 has spoken all the time"
    progress = [line for line in said if line.startswith("trial   0  in epoch 2/6: training")]
    assert len(progress) >= 3
    assert "10 images/s, about" in progress[0]
    assert any(0 in signs and signs[0].stage == "training" for signs in shown), "other terminals see it"
    assert StudyStore(database, "long").signs() == {}
