"""A seat serves one trial after the other, and is made anew whenever one has left it in doubt. Real Ray Train workers.

The trials are light ones: what they do wrong, they do in the worker of a seat.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import ray

from infra.cluster.cluster import placement_groups
from study.driver.board import board_name, lasting
from study.driver.run import run_study
from study.driver.trial import TrialOrder
from study.store.rows import TrialRow
from study.store.store import StudyStore
from tests.support.light import Plan, create_measured, light_cluster, light_study, run_light
from trainers.schema.records import Ending

if TYPE_CHECKING:
    from infra.cluster.cluster import Cluster
    from infra.services import Services

pytestmark = [pytest.mark.slow, pytest.mark.nested, pytest.mark.timeout(3000)]

FAULTS = {2: "raise", 4: "kill-once", 6: "out-of-memory", 8: "hang-once"}
TRIALS, MANY = 11, 200


def light_work(plan: Plan) -> Any:
    """Light trials as the work of a seat."""

    def work(order: TrialOrder) -> Ending:
        board, last = board_name(order.study, order.token), {}

        def tell(word: dict[str, Any]) -> None:
            last.update(word)
            if "report" in word:
                lasting(board, lambda at: ray.get(at.post.remote(order.serial, word)))

        run_light(plan, order.settings(), tell)
        return Ending.model_validate_json(last["ending"])

    return work


@pytest.fixture(scope="module")
def cluster(stack: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with light_cluster(stack, tmp_path_factory.mktemp("home")) as connected:
        for module in (sys.modules[__name__], sys.modules["tests.support.light"]):
            ray.cloudpickle.register_pickle_by_value(module)
        yield connected


def drive(cluster: Cluster, services: Services, folder: Path, name: str, plan: Plan, **changed: Any) -> dict[str, Any]:
    spec = light_study(name, scheduler={"name": "none"}, sampler={"name": "random"}, **changed)
    store = StudyStore(f"sqlite:///{folder}/studies.db", spec.name)
    create_measured(store, spec)
    said: list[str] = []
    outcome = run_study(
        spec, database=store.url, cluster=cluster, bucket=services.bucket, tracking_uri=services.mlflow_uri,
        say=said.append, work=light_work(plan),
    )  # fmt: skip
    return {"outcome": outcome, "rows": store.trials(), "said": said, "groups": placement_groups()}


def process_of(row: TrialRow) -> Any:
    """The worker that ended it; the number of a process that is gone is not given again so soon."""
    return (row.attempts[-1].provenance or {}).get("pid")


@pytest.fixture(scope="module")
def odd(cluster: Cluster, stack: Services, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    resources = {"workers": 1, "max_concurrent": 1, "silence": 150}
    return drive(
        cluster, stack, tmp_path_factory.mktemp("seats"), "seats", Plan(faults=FAULTS), budget={"trials": TRIALS},
        resources=resources,
    )  # fmt: skip


def test_every_trial_ends_as_it_should(odd):
    assert odd["outcome"].state == "finished"
    kinds = {row.number: row.failure_kind for row in odd["rows"] if row.state == "failed"}
    assert kinds == {2: "bug", 6: "out-of-memory"}
    assert {row.number for row in odd["rows"] if row.state == "complete"} == set(range(TRIALS)) - {2, 6}
    assert all(len(row.attempts) == 1 for row in odd["rows"]), "everything under one driver"


def test_a_seat_is_kept_after_a_trial_that_ended_well_and_after_no_other(odd):
    processes = [process_of(row) for row in odd["rows"]]
    kept = {after for after in range(1, TRIALS) if processes[after] == processes[after - 1]}
    moved = {4, 6, 8}  # they ended in another process than they began in; 6 was tried once more, alone
    assert kept == set(range(1, TRIALS)) - moved - {fault + 1 for fault in FAULTS}


def test_no_placement_group_is_left(odd):
    assert odd["groups"] == []


KILLED = {  # with what is then to be gone and free, though nobody else looks after it
    "Tune's process": ("ray::Impl",),
    "all of a trial, as where memory runs out": (
        "ray::Impl", "ray::TrainContr", "ray::PlacementG", "ray::RayTrain", "ray::Synchroniz", "ray::Board",
    ),
    "Train's controller and its cleaner, at once": ("ray::TrainContr", "ray::PlacementG"),
}  # fmt: skip


@pytest.mark.parametrize("what", KILLED)
def test_who_lost_processes_of_a_trial_goes_on_in_others_and_holds_nothing_for_those_before(
    cluster: Cluster, stack: Services, tmp_path: Path, what: str
) -> None:
    """Workers would train on, heard by nobody, and placement groups stay to the job's end."""
    begun, gone = tmp_path / "begun", []

    def slow(config: Any) -> list[tuple[float, float, float]]:
        with open(begun, "a") as file:
            file.write(f"{os.getpid()}\n")
        return [(0.6, 0.3, 5.0)] * config["train"]["epochs"]

    def kill() -> None:
        while not begun.exists() or not begun.read_text():
            time.sleep(0.2)
        worker = psutil.Process(int(begun.read_text().split()[0]))
        if "at once" not in what:
            time.sleep(8)  # the driver asks the board every few seconds: this one dies with the others
        for each in psutil.Process().children(recursive=True):
            if each.name().startswith(KILLED[what]):
                each.kill()
        gone.extend(psutil.wait_procs([worker], timeout=20)[0])

    killer = threading.Thread(target=kill)
    killer.start()
    found = drive(
        cluster, stack, tmp_path, f"lost-{len(KILLED[what])}", Plan(curve=slow, scale=1.0), budget={"trials": 2},
        resources={"max_concurrent": 2, "cpus_per_worker": 2},
    )  # fmt: skip
    killer.join()
    assert gone, "the workers had 20 s of training before them"
    assert [row.state for row in found["rows"]] == ["complete"] * 2
    assert len(set(begun.read_text().split())) >= 2
    assert any("interrupted" in line for line in found["said"])
    assert found["groups"] == []


def test_two_hundred_trials_on_one_seat_take_no_more_memory_files_and_threads(
    cluster: Cluster, stack: Services, tmp_path: Path
) -> None:
    """The first trials import, connect and fill caches."""

    def measured(config: Any) -> list[tuple[float, float, float]]:
        me = psutil.Process()
        with open(tmp_path / "measured", "a") as file:
            file.write(f"{os.getpid()} {me.memory_info().rss} {me.num_fds()} {me.num_threads()}\n")
        return [(0.6, 0.3, 0.0)] * config["train"]["epochs"]

    found = drive(
        cluster, stack, tmp_path, "many", Plan(curve=measured), budget={"trials": MANY},
        resources={"max_concurrent": 1}, train={"epochs": 1},
    )  # fmt: skip
    assert [row.state for row in found["rows"]] == ["complete"] * MANY
    rows = [[int(word) for word in line.split()] for line in (tmp_path / "measured").read_text().splitlines()]
    processes, memory, files, threads = zip(*rows, strict=True)
    assert len(set(processes)) == 1, "one seat"
    assert memory[-1] < memory[20] + (16 << 20)
    assert files[-1] <= files[20] + 2
    assert threads[-1] <= threads[20] + 2
    seconds = [(b.started_ms - a.started_ms) / 1000 for a, b in itertools.pairwise(found["rows"][1:])]
    print(f"{memory[20] >> 20} -> {memory[-1] >> 20} MiB, {files[-1]} files, {threads[-1]} threads; {max(seconds)} s")
