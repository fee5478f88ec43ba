"""Ray goes away under a driver, whole or in part: it leaves with one line and can go on, or mends what is missing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from infra.services import Services
from study.store.store import StudyStore
from tests.support.light import create_measured, light_study
from tests.support.services.clusters import TwoNodes, two_nodes
from tests.support.services.real_run import read_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
OURS = ("AWS_", "MLFLOW_", "AGFT_", "RAY_")
TRIALS = 4


@dataclass
class Study:
    """A study of light trials that the `agft` command drives, 2 s an epoch."""

    store: StudyStore
    environment: Mapping[str, str]
    drivers: list[subprocess.Popen[str]] = field(default_factory=list)

    def start(self, *arguments: str, seconds: float = 2.0, **more: str) -> subprocess.Popen[str]:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.driven", str(seconds), *arguments], cwd=ROOT, text=True,
            env={**self.environment, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        self.drivers.append(driver)
        return driver

    def agft(self, *arguments: str, seconds: float = 0.0, **more: str) -> tuple[int, str, str]:
        """To its end: exit code, output, errors."""
        process = self.start(*arguments, seconds=seconds, **more)
        said, errors = process.communicate(timeout=400)
        return process.returncode, said, errors

    def check_whole(self) -> None:
        rows = self.store.trials()
        assert [row.state for row in rows] == ["complete"] * TRIALS
        assert all([record.epoch for record in row.epochs] == [1, 2, 3, 4, 5, 6] for row in rows)


def made(services: Services, folder: Path, name: str, database: str = "", **more: str) -> Study:
    clean = {key: value for key, value in os.environ.items() if not key.startswith(OURS)}
    home = folder / "home"
    home.mkdir(exist_ok=True)
    store = StudyStore(database or f"sqlite:///{home}/studies.db", name)
    spec = light_study(name, budget={"trials": TRIALS}, scheduler={"name": "none"}, resources={"max_concurrent": 2})
    create_measured(store, spec)
    own = {"AGFT_HOME": str(home), "AGFT_STUDY_DB": store.url, "PYTHONUNBUFFERED": "1"}
    return Study(store, {**clean, **services.environment(), **own, **more})


@pytest.fixture
def study(stack: Services, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Study]:
    study = made(stack, tmp_path, f"lost-{abs(hash(request.node.name)) % 10**6}")
    try:
        yield study
    finally:
        for driver in study.drivers:
            with_children = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
            for process in with_children:
                process.kill()
            driver.kill()


def of(driver: subprocess.Popen[str], word: str) -> list[psutil.Process]:
    """Processes below the driver in whose name or command line `word` stands."""
    found = []
    for process in psutil.Process(driver.pid).children(recursive=True):
        try:
            if word == process.name() or (process.cmdline() and word in process.cmdline()[0]):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def check_left(study: Study, driver: subprocess.Popen[str], why: str) -> None:
    """The driver has left with one line, after at most one on an actor that it had missed first, and said in the store
    why; nothing of Ray's is on the terminal."""
    said, errors = driver.communicate(timeout=150)
    assert driver.returncode == 1
    *before, last = errors.splitlines()
    assert all("has died" in line or "could not be opened" in line for line in before), errors
    assert last.startswith("failed: ")
    assert why in last
    assert "nothing is lost, the same command goes on" in errors
    assert "Traceback" not in said
    assert "(raylet)" not in said
    row = study.store.load()
    assert (row.state, row.lease_owner) == ("paused", None)
    assert why in (row.message or "")
    assert why in study.agft("status", study.store.name)[1]
    assert why in study.agft("logs", study.store.name)[1]


WHY = {"raylet": "the Ray node that this process is on has died", "gcs_server": "has not answered"}


@pytest.mark.parametrize("killed", WHY)
def test_a_driver_whose_ray_is_killed_leaves_with_one_line_and_the_next_one_goes_on(study, killed):
    driver = study.start("resume", study.store.name)
    read_until(driver, lambda line: "epoch 2/" in line)
    for process in of(driver, killed):
        process.kill()
    check_left(study, driver, WHY[killed])
    code, _, errors = study.agft("resume", study.store.name, seconds=0.05)
    assert code == 0, errors
    study.check_whole()


def test_it_obeys_the_first_sigterm_meanwhile(study):
    driver = study.start("resume", study.store.name)
    read_until(driver, lambda line: "epoch 2/" in line)
    for process in of(driver, "raylet"):
        process.kill()
    driver.send_signal(signal.SIGTERM)
    said, errors = driver.communicate(timeout=150)
    assert driver.returncode == 1
    assert "Traceback" not in said + errors
    assert (study.store.load().state, study.store.load().lease_owner) == ("paused", None)


def test_a_board_and_an_admission_actor_that_are_killed_are_opened_again(study):
    driver = study.start("resume", study.store.name)
    read_until(driver, lambda line: "epoch 2/" in line)
    for word in ("ray::Board", "ray::Admission"):
        [process] = of(driver, word)
        process.kill()
    _, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors
    assert "the board has died" in errors
    assert "the admission actor has died" in errors
    assert "Traceback" not in errors
    study.check_whole()
    assert all(len(row.attempts) == 1 for row in study.store.trials()), "no trial left because of it"


def test_a_dead_head_under_auto_is_one_line_for_who_drives_and_for_who_comes(stack, tmp_path):
    with two_nodes(stack, head_cpus=2, worker_cpus=0) as cluster:
        study = made(stack, tmp_path, "auto", **on(cluster))
        driver = study.start("resume", "auto")
        try:
            read_until(driver, lambda line: "epoch 2/" in line)
        except AssertionError:
            print(driver.communicate(timeout=60))
            raise
        cluster.kill("head")
        check_left(study, driver, "has not answered")
        code, _, errors = study.agft("resume", "auto")
        assert (code, errors.count("\n")) == (1, 1), errors
        assert errors.startswith("failed: Ray at auto: ")


def on(cluster: TwoNodes) -> dict[str, str]:
    """The cluster that `auto` finds, as on the machine of its head."""
    kept = {name: value for name, value in cluster.environment().items() if name.startswith("RAY_")}
    return {**kept, "RAY_ADDRESS": "auto", "RAY_TMPDIR": str(cluster.folder / "ray-head")}
