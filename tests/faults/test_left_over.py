"""Trials that a driver left unfinished, in a study that ends before they can go on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import optuna
import pytest
import sqlalchemy as sa

from study.control.lifecycle import stop_study
from study.search.optuna_book import OptunaBook, optuna_storage
from study.store import tables as t
from study.store.lease import owner_identity
from study.store.store import StudyStore
from tests.support.light import BASELINE, Plan, create_measured, drive, light_cluster, light_study

if TYPE_CHECKING:
    from infra.services import Services

pytestmark = pytest.mark.slow


def left_by_a_driver(store: StudyStore, epochs: list[int]) -> None:
    """A trial for every entry, with so many epochs done, and no word how it ended."""
    token = store.acquire(owner_identity())
    spec = store.load().spec
    book = OptunaBook(store, spec, spec.goal.resolve(BASELINE).at_least)
    book.enqueue_warm_starts()
    for done in epochs:
        number, params = book.propose()
        store.start_trial(token, number, params, spec.base())
        score = {"clean_accuracy": 0.7, "robust_accuracy": 0.3}
        history = [
            {"epoch": epoch, "timestamp_ms": epoch, **score, **{f"best_{k}": v for k, v in score.items()},
             "best_feasible": True, "best_epoch": 1, "train_loss": 1.0, "lr": 1.0, "images_per_second": 1.0,
             "grad_norm": 1.0, "datasets": {}}
            for epoch in range(1, done + 1)
        ]  # fmt: skip
        store.record(token, number, history, latest=None, best=None, device_seconds=1.0)
    store.release(token, "paused")


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
    known = optuna.load_study(study_name=store.load().optuna_name, storage=optuna_storage(store)).get_trials()
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
    known = optuna.load_study(study_name=store.load().optuna_name, storage=optuna_storage(store)).get_trials()
    assert "RUNNING" not in [trial.state.name for trial in known]
