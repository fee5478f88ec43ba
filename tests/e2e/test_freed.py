"""What a study held is free when it has ended: CPUs, memory and placement groups, by Ray's own state."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import ray

from infra.cluster.cluster import placement_groups
from study.driver.run import run_study
from study.store.store import StudyStore
from tests.support.light import Plan, drive, light_cluster, light_study

if TYPE_CHECKING:
    from infra.services import Services

TRIALS = 20
FAULTS = {2: "raise", 5: "non-finite", 8: "mute", 11: "kill", 14: "nothing"}


def held(*, seconds: float = 30) -> dict[str, Any]:
    """Resources and placement groups that are still in use after a while, and actors of trials that still live."""
    deadline = time.monotonic() + seconds
    while True:
        total, free = ray.cluster_resources(), ray.available_resources()
        names = ("CPU", "memory")
        found: dict[str, Any] = {
            name: total[name] - free.get(name, 0.0) for name in names if total[name] != free.get(name)
        }
        found |= {group["placement_group_id"]: group["state"] for group in placement_groups()}
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.25)


def endings(store: StudyStore) -> dict[str, int]:
    states = [row.state for row in store.trials()]
    return {state: states.count(state) for state in sorted(set(states))}


@pytest.mark.slow
@pytest.mark.parametrize("faults", [pytest.param({}, id="no-failures"), pytest.param(FAULTS, id="five-failures")])
def test_twenty_light_trials_under_asha_leave_every_cpu_and_placement_group_free(
    stack: Services, tmp_path: Path, faults
):
    database = f"sqlite:///{tmp_path}/studies.db"
    with light_cluster(stack, tmp_path / "home") as cluster:
        outcome = drive(
            light_study("freed", budget={"trials": TRIALS}), Plan(faults=faults), database=database, cluster=cluster,
            services=stack,
        )  # fmt: skip
        assert held() == {}
    assert outcome.state == "finished"
    found = endings(StudyStore(database, "freed"))
    assert sum(found.values()) == TRIALS
    assert found.get("failed", 0) == len(faults)
    assert found["pruned"] >= 5, "ASHA was at work"


NESTED = {
    "train": {"epochs": 2, "batch_size": 64, "samples_per_epoch": 64, "optimizer": {"name": "adamw", "lr": 5e-4}},
    "scheduler": {"name": "asha", "grace_fraction": 0.5, "reduction_factor": 2},
    "evaluate": {"select": {"attack": {"eps": [4 / 255], "steps": 1}, "samples": 16}},
    "budget": {"trials": TRIALS},
}


@pytest.mark.slow
@pytest.mark.nested
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("failures", [False, True], ids=["no-failures", "some-failures"])
def test_twenty_nested_trials_under_asha_leave_every_cpu_and_placement_group_free(
    stack: Services, tmp_path: Path, failures: bool
):
    """With failures every trial that draws the largest weight is non-finite: its gradient overflows."""
    changed = dict(NESTED)
    if failures:
        changed["search"] = {"method.feature_weight": {"choices": [1.0, 10.0, 1e38]}}
    spec = light_study("freed-nested", **changed)
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", spec.name)
    store.create(spec)
    with light_cluster(stack, tmp_path / "home") as cluster:
        outcome = run_study(
            spec, database=store.url, cluster=cluster, bucket=stack.bucket, tracking_uri=stack.mlflow_uri, say=print
        )
        assert held() == {}
    assert outcome.state == "finished"
    found = endings(store)
    assert sum(found.values()) == TRIALS
    assert found["pruned"] >= 1, "ASHA was at work"
    assert (found.get("failed", 0) > 0) == failures


@pytest.mark.slow
def test_no_trial_is_let_in_beside_what_holds_the_cluster_without_a_slot(stack: Services, tmp_path: Path):
    def hold() -> float:
        time.sleep(20)
        return time.time()

    database = f"sqlite:///{tmp_path}/studies.db"
    with light_cluster(stack, tmp_path / "home") as cluster:
        ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
        others = ray.remote(num_cpus=2)(hold).remote()
        while ray.available_resources().get("CPU", 0.0) > 0:
            time.sleep(0.1)
        outcome = drive(
            light_study("polite", budget={"trials": 2}), database=database, cluster=cluster, services=stack
        )  # fmt: skip
        until = ray.get(others)
    assert outcome.state == "finished"
    assert all(row.started_ms / 1000 > until for row in StudyStore(database, "polite").trials())
