"""Ray nodes on hosts of their own, with a cable between them that can be pulled. 4 nested trials."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from infra.cluster.jobs import Jobs
from study.store.rows import TrialRow
from study.store.store import StudyStore
from tests.support.services import hosts
from tests.support.services.compose import ROOT, services
from tests.support.services.hosted import Hosted, hosted
from tests.support.study_files import trained

pytestmark = [pytest.mark.slow, pytest.mark.nested, pytest.mark.timeout(1200)]

EPOCHS = 30  # so long that both trials train at the same time, whichever starts first
STUDY = trained(
    name="apart", train=f"{{epochs: {EPOCHS}, batch_size: 64, samples_per_epoch: 256}}", budget="{trials: 2}"
)
WORKERS = ("ray-worker-1", "ray-worker-2")


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What docker/up writes."""
    if reason := hosts.why_not():
        pytest.skip(reason)
    path = tmp_path_factory.mktemp("env") / "env"
    subprocess.run([ROOT / "docker" / "up", "--env-only"], check=True, capture_output=True,
                   env={"PATH": "/usr/bin:/bin", "AGFT_ENV_FILE": str(path)})  # fmt: skip
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines) | {"AGFT_WORKERS": "2", "AGFT_WORKER_CPUS": "1"}


@pytest.fixture(scope="module")
def stack(variables: dict[str, str]) -> Iterator[Hosted]:
    with hosted(variables) as stack:
        yield stack


def wait_for(found: Callable[[], object], what: str, seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline, what
        time.sleep(1)


def trains(stack: Hosted, host: str) -> bool:
    """Whether a Train worker lives on a host."""
    for process in stack.processes(host):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                return True
        except psutil.NoSuchProcess:
            continue
    return False


def test_the_cluster_gives_up_a_node_that_is_cut_off_and_takes_it_back(variables, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", variables["RAY_AUTH_TOKEN"])
    folder = Path(tempfile.mkdtemp(prefix="agft-h-", dir="/tmp"))
    try:
        with hosts.hosts(["ray-head", "ray-worker-1"]) as network:
            pair = Hosted(network, services(variables), folder)
            pair.start("ray-head", "ray-head")
            pair.wait_healthy("ray-head", "ray-head")
            jobs = Jobs(f"http://{network.addresses['ray-head']}:8265")
            pair.start("ray-worker-1", "ray-worker")
            wait_for(lambda: {node.address for node in jobs.nodes()} == set(network.addresses.values()), "two hosts")
            network.cut("ray-worker-1")
            wait_for(lambda: len(jobs.nodes()) == 1, "the cluster gives the node up", 120)
            network.restore("ray-worker-1")
            wait_for(lambda: len(jobs.nodes()) == 2, "the node is back", 180)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def stored(stack: Hosted, variables: dict[str, str], study: str) -> dict[int, TrialRow]:
    """The study's trials, from the database on its host."""
    address = stack.hosts.addresses["postgres"]
    url = f"postgresql+psycopg://agft:{variables['STUDY_DB_PASSWORD']}@{address}/agft"
    return {trial.number: trial for trial in StudyStore(url, study).trials()}


def groups(trial: TrialRow) -> int:
    """How many groups of workers have trained a trial of one driver's: its checkpoint's place says the last one."""
    assert trial.latest is not None
    found = re.search(r"/a000001\.(\d{3})/", trial.latest.uri)
    assert found, trial.latest
    return int(found[1])


def test_a_node_that_is_cut_off_in_the_middle_of_a_trial_and_comes_back_costs_nothing(stack, variables, monkeypatch):
    file = stack.folder / "apart.yaml"
    file.write_text(STUDY)
    monkeypatch.setenv("RAY_AUTH_TOKEN", variables["RAY_AUTH_TOKEN"])
    jobs = Jobs(f"http://{stack.hosts.addresses['ray-head']}:8265")
    assert len({node.address for node in jobs.nodes()}) == 3, "three hosts, three addresses"

    stack.agft("submit", str(file))
    wait_for(lambda: len(stored(stack, variables, "apart")) == 2, "both trials start")
    wait_for(lambda: all(trains(stack, host) for host in WORKERS), "a trial on each node")
    wait_for(lambda: all(trial.epochs for trial in stored(stack, variables, "apart").values()), "an epoch of each")
    lost = WORKERS[1]
    stack.hosts.cut(lost)
    try:
        before = stored(stack, variables, "apart")
        wait_for(lambda: len(jobs.nodes()) == 2, "the cluster gives the node up", 120)
    finally:
        stack.hosts.restore(lost)
    wait_for(lambda: len(jobs.nodes()) == 3, "the node is back", 180)

    log = stack.agft("logs", "apart", "-f").stdout
    after = stored(stack, variables, "apart")
    assert {number: trial.state for number, trial in after.items()} == {0: "complete", 1: "complete"}
    assert max(map(groups, after.values())) > 1, "a trial lost its node"
    for number, trial in after.items():
        assert [record.epoch for record in trial.epochs] == list(range(1, EPOCHS + 1))
        kept = before[number].epochs
        assert trial.epochs[: len(kept)] == kept, "what was stored before the cut is what is stored now"
    shown = re.findall(r"trial +(\d+)  epoch (\d+)/", log)
    assert len(shown) == len(set(shown)) == 2 * EPOCHS, "every epoch once"


def test_a_short_interruption_is_not_even_noticed(stack, variables):
    file = stack.folder / "blink.yaml"
    file.write_text(STUDY.replace("apart", "blink"))
    stack.agft("submit", str(file))
    wait_for(lambda: len(stored(stack, variables, "blink")) == 2, "both trials start")
    wait_for(lambda: all(trains(stack, host) for host in WORKERS), "a trial on each node")
    stack.hosts.cut(WORKERS[1])
    time.sleep(5)
    stack.hosts.restore(WORKERS[1])
    stack.agft("logs", "blink", "-f")
    after = stored(stack, variables, "blink").values()
    assert [(trial.state, len(trial.epochs), groups(trial)) for trial in after] == [("complete", EPOCHS, 1)] * 2
