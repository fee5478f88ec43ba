"""Trials that a driver left unfinished, in a study that ends before they can go on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import sqlalchemy as sa

from study.control.lifecycle import stop_study
from study.store import tables as t
from study.store.store import StudyStore
from tests.support.epochs import epoch_record
from tests.support.hand import Hand, in_optuna
from tests.support.light import Plan, create_measured, drive, light_cluster, light_study

if TYPE_CHECKING:
    from infra.services import Services

pytestmark = pytest.mark.slow


def left_by_a_driver(store: StudyStore, epochs: list[int]) -> None:
    """A trial for every entry, with so many epochs done, and no word how it ended."""
    hand = Hand(store)
    for number, done in enumerate(epochs):
        assert hand.start()["number"] == number
        hand.report(number, *[epoch_record(epoch, 0.3, 0.7, best_epoch=1) for epoch in range(1, done + 1)])
    hand.leave("paused")


def test_a_study_whose_hours_are_used_up_ends_with_its_unfinished_trials(stack: Services, tmp_path: Path):
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", "spent")
    create_measured(store, light_study("spent", budget={"trials": 12, "hours": 1}))
    left_by_a_driver(store, [2, 6])
    with store.engine.begin() as connection:
        connection.execute(sa.update(t.studies).values(driven_seconds=3601.0))
    said: list[str] = []
    with light_cluster(stack, tmp_path / "home") as cluster:
        outcome = drive(
            store.load().spec, Plan(), database=store.url, cluster=cluster, services=stack, say=said.append
        )  # fmt: skip
    assert (outcome.state, outcome.message) == ("finished", "the budget of 1 hours is used up"), said
    assert [(row.state, row.stop_reason) for row in store.trials()] == [
        ("pruned", "study: the budget of 1 hours is used up"), ("complete", None),
    ]  # fmt: skip
    known = in_optuna(store)
    assert [trial.state.name for trial in known[:2]] == ["PRUNED", "COMPLETE"]
    assert "RUNNING" not in [trial.state.name for trial in known]


@pytest.mark.parametrize("first", ["pause", "stop"])
def test_a_study_that_is_paused_and_then_stopped_is_stopped(stack: Services, tmp_path: Path, first: str):
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", f"changed-{first}")
    create_measured(store, light_study(store.name, resources={"max_concurrent": 1}))
    left_by_a_driver(store, [2, 1])  # the second one is still in line when the study ends

    def say(line: str) -> None:
        if "continues" in line:
            store.desire(first)
        elif f"asked to {first}" in line:
            assert "asked" in stop_study(store)

    with light_cluster(stack, tmp_path / "home") as cluster:
        outcome = drive(
            store.load().spec, Plan(scale=4.0), database=store.url, cluster=cluster, services=stack, say=say
        )  # fmt: skip
    assert (outcome.state, outcome.message) == ("stopped", "asked to stop")
    assert [(row.state, row.stop_reason) for row in store.trials()] == [("pruned", "study: stop")] * 2
    known = in_optuna(store)
    assert "RUNNING" not in [trial.state.name for trial in known]
