"""The same oddities inside real Ray Train workers: what the driver makes of each."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray
from optuna.trial import TrialState

from infra.cluster.cluster import placement_groups
from study.driver.run import run_study
from study.driver.trial import TrialOrder, train_order
from study.store.rows import TrialRow
from study.store.store import StudyStore
from tests.support.hand import in_optuna
from tests.support.light import create_measured, light_cluster, light_study

if TYPE_CHECKING:
    from infra.services import Services

pytestmark = [pytest.mark.slow, pytest.mark.nested, pytest.mark.timeout(3000)]

FAULTS = {1: "nothing", 2: "raise", 3: "out-of-memory", 4: "kill", 5: "non-finite"}
KINDS = {1: "bug", 2: "bug", 3: "out-of-memory", 4: "bug", 5: "non-finite"}
TRIALS = 7


def odd_work(order: TrialOrder) -> Any:
    """`train_order`, of whose trials some do something else, and one has a loss whose gradient overflows."""
    fault = FAULTS.get(order.number)
    if fault == "nothing":
        return None
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "raise":
        raise ValueError("the worker was told to raise")
    if fault == "out-of-memory":
        raise MemoryError("cannot allocate 80 GiB")
    if fault == "non-finite":
        config = {**order.config, "method": {**order.config["method"], "feature_weight": 1e38}}
        order = replace(order, config=config)
    return train_order(order)


@pytest.fixture(scope="module")
def odd(stack: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    folder: Path = tmp_path_factory.mktemp("odd-nested")
    spec = light_study(
        "odd-nested", scheduler={"name": "none"}, budget={"trials": TRIALS},
        train={"epochs": 2, "batch_size": 64, "samples_per_epoch": 640, "optimizer": {"name": "adamw", "lr": 5e-4}},
        search={"method.scale_ratio": {"low": 0.5, "high": 1.0}},
    )  # fmt: skip
    store = StudyStore(f"sqlite:///{folder}/studies.db", spec.name)
    create_measured(store, spec)
    said: list[str] = []
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with light_cluster(stack, folder / "home") as cluster:
        outcome = run_study(
            store.load().spec, database=store.url, cluster=cluster, bucket=stack.bucket,
            tracking_uri=stack.mlflow_uri, say=said.append, work=odd_work,
        )  # fmt: skip
        yield {"outcome": outcome, "store": store, "said": said, "groups": placement_groups()}


@pytest.fixture
def rows(odd: dict[str, Any]) -> dict[int, TrialRow]:
    return {row.number: row for row in odd["store"].trials()}


@pytest.mark.parametrize("number", KINDS, ids=lambda number: FAULTS[number])
def test_each_failure_has_its_kind_and_a_reason(odd, rows, number):
    row = rows[number]
    assert (row.state, row.failure_kind) == ("failed", KINDS[number]), row.stop_reason
    assert row.stop_reason
    assert any(line.startswith(f"trial {number:>3}  failed ({KINDS[number]})") for line in odd["said"])


def test_the_others_finish_and_the_budget_counts_every_trial_once(odd, rows):
    assert odd["outcome"].state == "finished"
    assert {number for number, row in rows.items() if row.state == "complete"} == {0, 6}
    assert set(rows) == set(range(TRIALS))


def test_optuna_has_no_running_trial_and_no_value_of_a_failed_one(odd):
    known = in_optuna(odd["store"])
    for trial in known:
        assert trial.state == (TrialState.FAIL if trial.number in KINDS else TrialState.COMPLETE)
        assert (trial.values is None) == (trial.number in KINDS)


def test_no_placement_group_is_left(odd):
    assert odd["groups"] == []
