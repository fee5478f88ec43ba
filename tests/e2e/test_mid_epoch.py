"""What happens in the middle of a long epoch costs nothing: a pause, SIGTERM, a kill. Real training on two workers."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest
import torch
from safetensors.torch import load_file

from infra import storage
from infra.cluster import leave
from study.artifacts.checkpoints import NAME
from study.driver.run import Outcome, run_study
from study.spec.files import parse_study
from study.store.rows import TrialRow
from study.store.store import StudyStore
from tests.support.light import create_measured, light_cluster
from tests.support.study_files import trained

if TYPE_CHECKING:
    from infra.cluster.cluster import Cluster
    from infra.services import Services

pytestmark = [pytest.mark.slow, pytest.mark.nested, pytest.mark.timeout(3000)]

UPDATES = 40


@pytest.fixture(scope="module")
def cluster(stack: Services, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with light_cluster(stack, tmp_path_factory.mktemp("home")) as connected:
        yield connected


@dataclass
class Story:
    """A study of one trial of one epoch, to which something happens once a state was kept inside it."""

    name: str
    services: Services
    cluster: Cluster
    folder: Path
    said: list[str] = field(default_factory=list)
    kept: list[tuple[str, int]] = field(default_factory=list)  # (group, steps), as states appear
    listening: set[str] = field(default_factory=set)  # addresses of its workers' sockets
    over: bool = False

    def __post_init__(self) -> None:
        train = f"{{epochs: 1, batch_size: 32, samples_per_epoch: {32 * UPDATES}, checkpoint_minutes: 0.02}}"
        text = trained(name=self.name, train=train, budget="{trials: 1}", resources="{workers: 2, cpus_per_worker: 1}")
        self.store = StudyStore(f"sqlite:///{self.folder}/studies.db", self.name)
        create_measured(self.store, parse_study(text, source=self.name))

    def drive_and(self, strike: Callable[[], None]) -> Outcome:
        """`strike` when a state is kept that leaves much of the epoch to do."""

        def watch() -> None:
            struck = False
            while not self.over:
                for worker in workers():
                    with contextlib.suppress(psutil.Error):
                        found = worker.net_connections(kind="inet")
                        self.listening |= {each.laddr.ip for each in found if each.status == psutil.CONN_LISTEN}
                for stored in storage.list_objects(f"s3://{self.services.bucket}/studies/{self.store.load().slug}/"):
                    name = NAME.fullmatch(stored.uri)
                    if name and name["steps"] and (each := (name["group"], int(name["steps"]))) not in self.kept:
                        self.kept.append(each)
                if self.kept and not struck:
                    struck = True
                    strike()
                time.sleep(0.2)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return run_study(
                self.store.load().spec, database=self.store.url, cluster=self.cluster, bucket=self.services.bucket,
                tracking_uri=self.services.mlflow_uri, say=self.said.append,
            )  # fmt: skip
        finally:
            self.over = True
            watcher.join()

    def row(self) -> TrialRow:
        [row] = self.store.trials()
        return row

    def went_on(self) -> tuple[int, int]:
        """Updates of the newest state of the first group of workers, and those that the next one began with."""
        groups = sorted({group for group, _ in self.kept})
        first, second = ([steps for group, steps in self.kept if group == each] for each in groups[:2])
        return max(first), min(second)

    def weights(self) -> dict[str, torch.Tensor]:
        best, path = self.row().best, self.folder / f"{self.name}.safetensors"
        assert best is not None
        storage.get_file(best.uri, path)
        return load_file(path)


@pytest.fixture(scope="module")
def whole(cluster: Cluster, stack: Services, tmp_path_factory: pytest.TempPathFactory) -> Story:
    story = Story("whole", stack, cluster, tmp_path_factory.mktemp("whole"))
    assert story.drive_and(lambda: None).state == "finished"
    return story


def workers() -> list[psutil.Process]:
    """Of this cluster alone, one a rank: others may train here, too."""
    found = []
    for process in leave.workers():
        with contextlib.suppress(psutil.Error):
            if process.environ().get("AGFT_HOME") == os.environ["AGFT_HOME"]:
                found.append(process)
    return found


def assert_the_same(story: Story, whole: Story) -> None:
    ours, theirs = story.row(), whole.row()
    assert ours.state == theirs.state == "complete", story.said
    assert [record.repeatable() for record in ours.epochs] == [record.repeatable() for record in theirs.epochs]
    left, right = story.weights(), whole.weights()
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_several_workers_of_one_machine_listen_on_loopback_alone(whole):
    assert {address.removeprefix("::ffff:") for address in whole.listening} == {"127.0.0.1"}


def test_a_pause_takes_effect_inside_an_epoch_and_loses_nothing(cluster, stack, tmp_path, whole, monkeypatch):
    for place in ("heartbeat", "driver"):
        monkeypatch.setattr(f"study.driver.{place}.HEARTBEAT_SECONDS", 0.5)
    story = Story("paused", stack, cluster, tmp_path)
    asked: list[float] = []

    def pause() -> None:
        asked.append(time.monotonic())
        story.store.desire("pause")

    assert story.drive_and(pause).state == "paused"
    waited = time.monotonic() - asked[0]
    assert (story.row().state, story.row().epochs, len(story.row().attempts)) == ("running", (), 1), story.said
    assert "asked to pause: running trials keep a state and leave" in story.said
    before = max(steps for _, steps in story.kept)
    assert before < UPDATES, f"left after {waited:.0f} s"
    story.over = False
    assert story.drive_and(lambda: None).state == "finished"
    first, then = story.went_on()
    assert then == first == before, "no update is done twice"
    assert_the_same(story, whole)


@pytest.mark.parametrize("of", ["one rank", "a node"])
def test_workers_that_get_sigterm_keep_a_state_first(cluster, stack, tmp_path, whole, of):
    story = Story(f"terminated-{of.split()[1]}", stack, cluster, tmp_path)
    left: list[psutil.Process] = []

    def strike() -> None:
        left.extend(leave.let_leave(workers() if of == "a node" else workers()[1:], 120))

    assert story.drive_and(strike).state == "finished"
    assert left == []
    assert any("interrupted, goes on in epoch 1: a process of it was told to end" in line for line in story.said)
    first, then = story.went_on()
    assert then == first, "no update is done twice"
    assert [attempt.outcome for attempt in story.row().attempts] == ["complete"], "one driver, one attempt"
    assert_the_same(story, whole)


def test_a_killed_worker_costs_what_was_done_since_the_last_state(cluster, stack, tmp_path, whole):
    story = Story("killed", stack, cluster, tmp_path)
    assert story.drive_and(lambda: workers()[0].kill()).state == "finished"
    first, then = story.went_on()
    assert 0 < then <= first < UPDATES
    assert_the_same(story, whole)
