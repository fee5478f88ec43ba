"""A real two-node cluster that loses its head or a worker node, and two studies that share one. 11 nested trials."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from infra import storage
from infra.services import Services
from infra.stack import processes
from study.artifacts.checkpoints import trial_prefix
from study.store.store import StudyStore
from tests.support.services.clusters import TwoNodes, two_nodes
from tests.support.services.real_run import read_until
from tests.support.study_files import trained
from trainers.model.weights import read_metadata

pytestmark = [pytest.mark.slow, pytest.mark.nested, pytest.mark.timeout(1200)]


def write_study(cluster: TwoNodes, name: str, *, trials: int, epochs: int, samples: int = 256) -> str:
    train = f"{{epochs: {epochs}, batch_size: 64, samples_per_epoch: {samples}}}"
    text = trained(name=name, train=train, budget=f"{{trials: {trials}}}")
    (cluster.folder / f"{name}.yaml").write_text(text)
    return f"{name}.yaml"


@pytest.fixture
def make(stack: Services, monkeypatch: pytest.MonkeyPatch) -> Callable[..., object]:
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)

    @contextmanager
    def started(**cpus: int) -> Iterator[TwoNodes]:
        with two_nodes(stack, **cpus) as cluster:
            yield cluster

    return started


def wait_for(found: Callable[[], object], what: str, seconds: float = 600) -> object:
    deadline = time.monotonic() + seconds
    while True:
        if value := found():
            return value
        assert time.monotonic() < deadline, what
        time.sleep(1)


def trials_of(cluster: TwoNodes, study: str) -> dict[int, dict]:
    return {trial["number"]: trial for trial in cluster.status(study)["trials"]}


def history_in_state(cluster: TwoNodes, study: str, number: int, folder: Path) -> dict[int, int]:
    """Epoch -> its end (ms), as the trial's newest checkpoint has them: whoever trained an epoch wrote its time."""
    slug = StudyStore(cluster.database, study).load().slug
    found = storage.list_objects(trial_prefix(cluster.services.bucket, slug, number))
    uri = [stored.uri for stored in found if "/latest-" in stored.uri][-1]
    path = folder / f"{study}-{number}.safetensors"
    storage.get_file(uri, path)
    return {record["epoch"]: record["timestamp_ms"] for record in read_metadata(path)["history"]}


def test_a_study_survives_the_loss_of_the_head_with_every_finished_trial_kept(make):
    with make(head_cpus=1, worker_cpus=1) as cluster:
        file = write_study(cluster, "headless", trials=3, epochs=2)
        cluster.agft("submit", file, "--address", cluster.dashboard)
        wait_for(lambda: cluster.status("headless")["counts"]["done"] >= 1, "a trial finishes")
        assert cluster.kill("head") > 3
        cluster.kill("worker")
        before = trials_of(cluster, "headless")
        finished = [number for number, trial in before.items() if trial["state"] == "complete"]
        assert finished
        assert len(finished) < 3
        wait_for(lambda: cluster.status("headless")["state"] == "interrupted", "the lease ends", 60)
        said = cluster.agft("status", "headless").stdout
        assert "is gone. Nothing is lost" in said
        assert "agft resume headless" in said
        gone = cluster.agft("submit", file, "--address", cluster.dashboard, check=False)
        assert gone.returncode == 1
        assert "no answer from a Ray dashboard" in gone.stderr

        cluster.start_head()
        cluster.start_worker()
        resumed = cluster.agft("resume", "headless", seconds=600, RAY_ADDRESS=cluster.head_address).stdout
        after = trials_of(cluster, "headless")
        assert cluster.status("headless")["state"] == "finished"
        assert [after[number]["state"] for number in range(3)] == ["complete"] * 3
        for number in finished:
            assert after[number] == before[number]
            assert not re.search(rf"trial +{number}  (starts|continues|epoch)", resumed)
        shown = re.findall(r"trial +(\d+)  epoch (\d+)/", cluster.agft("logs", "headless").stdout)
        assert len(shown) == len(set(shown)), "no epoch was stored twice"


def node_with_a_trial(cluster: TwoNodes, names: list[str]) -> str:
    """The node on which a Train worker lives."""
    for name in names:
        for process in processes.members(cluster.nodes[name]):
            try:
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    return name
            except psutil.NoSuchProcess:
                continue
    return ""


def test_a_trial_goes_on_from_its_checkpoint_on_the_other_node_when_its_raylet_is_killed(make, tmp_path):
    with make(head_cpus=0, worker_cpus=1) as cluster:
        cluster.start_worker("other", num_cpus=1)
        file = write_study(cluster, "moved", trials=1, epochs=6, samples=1024)
        cluster.agft("submit", file, "--address", cluster.dashboard)
        wait_for(lambda: any(t["epochs"] >= 2 for t in cluster.status("moved")["trials"]), "two epochs are stored")
        place = node_with_a_trial(cluster, ["worker", "other"])
        assert place, "a Train worker runs on one of the two nodes"
        [raylet] = [p for p in processes.members(cluster.nodes[place]) if p.name() == "raylet"]
        raylet.kill()
        killed_ms = time.time() * 1000
        at_kill = cluster.status("moved")["trials"][0]["epochs"]
        assert 2 <= at_kill < 6
        follow = cluster.agft("logs", "moved", "-f", seconds=600).stdout
        [trial] = cluster.status("moved")["trials"]
        assert (trial["state"], trial["epochs"]) == ("complete", 6)
        assert [int(e) for e in re.findall(r"trial +0  epoch (\d)/6", follow)] == [1, 2, 3, 4, 5, 6]
        history = history_in_state(cluster, "moved", 0, tmp_path)
        assert sorted(history) == [1, 2, 3, 4, 5, 6]
        assert all(history[epoch] < killed_ms for epoch in range(1, at_kill + 1)), "no epoch is trained again"
        assert all(history[epoch] > killed_ms for epoch in range(at_kill + 2, 7))


def spans(cluster: TwoNodes, study: str) -> list[tuple[int, int]]:
    """Start and end (ms) of every attempt at a trial, by start; a slot is given back just before its end is stored."""
    trials = StudyStore(cluster.database, study).trials()
    return sorted((attempt.started_ms, attempt.ended_ms - 5000) for trial in trials for attempt in trial.attempts)


def test_two_studies_share_two_cpus_and_take_turns(make):
    with make(head_cpus=1, worker_cpus=1) as cluster:
        first = write_study(cluster, "first", trials=5, epochs=2)
        second = write_study(cluster, "second", trials=2, epochs=2)
        cluster.agft("submit", first, "--address", cluster.dashboard)
        wait_for(lambda: cluster.status("first")["counts"]["running"] == 2, "the first study has both CPUs")
        cluster.agft("submit", second, "--address", cluster.dashboard)
        another = cluster.start("resume", "first", RAY_ADDRESS=cluster.head_address)
        assert "is being driven by process" in read_until(another, lambda line: "is being driven" in line)
        assert another.wait(60) == 2, "one driver at a time"
        for name in ("second", "first"):
            cluster.agft("logs", name, "-f", seconds=600)
            assert cluster.status(name)["state"] == "finished"
        hers, his = spans(cluster, "first"), spans(cluster, "second")
        assert (len(hers), len(his)) == (5, 2)
        edges = sorted([(start, 1) for start, _ in hers + his] + [(end, -1) for _, end in hers + his])
        together = [sum(step for _, step in edges[: place + 1]) for place in range(len(edges))]
        assert max(together) == 2, "never more than the CPUs there are"
        assert any(start > his[0][0] for start, _ in hers), "the first study was still starting trials"
        for start, _ in hers:
            if his[0][0] < start < his[-1][0]:
                beside = sum(begun < start < ended for begun, ended in hers)
                assert beside == 0, "while the second study waits, the first one holds no more than one CPU"
