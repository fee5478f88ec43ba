"""An epoch may take hours: a trial that says it is at work is left alone, and one that hangs is still found."""

from __future__ import annotations

import pytest

from study.driver.run import run_study
from study.spec.files import parse_study
from study.store.store import StudyStore
from tests.support.light import Plan, create_measured, drive, light_cluster, light_study
from tests.support.study_files import trained

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


def test_real_training_whose_epoch_is_longer_than_the_limit_is_left_alone(stack, tmp_path, monkeypatch):
    """Every update attacks with 60 steps: an epoch of minutes, signs of life all the way."""
    monkeypatch.setattr("study.driver.driver.SIGN_SAID_SECONDS", 10.0)
    said: list[str] = []
    text = trained(
        name="slow", attack="{name: pgd, eps: 4/255, steps: 60}", budget="{trials: 1}",
        train="{epochs: 1, batch_size: 64, samples_per_epoch: 2048}",
        resources=f"{{workers: 1, cpus_per_worker: 1, silence: {SILENCE_SECONDS}}}",
    )  # fmt: skip
    spec = parse_study(text, source="slow")
    with light_cluster(stack, tmp_path / "home") as cluster:
        store = StudyStore(f"sqlite:///{tmp_path}/studies.db", "slow")
        create_measured(store, spec)
        outcome = run_study(spec, database=store.url, cluster=cluster, bucket=stack.bucket,
                            tracking_uri=stack.mlflow_uri, say=said.append)  # fmt: skip
    [row] = store.trials()
    [record] = row.epochs
    assert (outcome.state, row.state, len(row.attempts)) == ("finished", "complete", 1), said
    assert record.train_seconds > 1.5 * SILENCE_SECONDS, "nothing was shown"
    assert not [line for line in said if "has said nothing" in line]
    assert len([line for line in said if line.startswith("trial   0  in epoch 1/1: training")]) >= 2
