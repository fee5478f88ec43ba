"""A rank that hangs is noticed, and its trial goes on from the newest checkpoint. One nested trial."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import psutil
import pytest

from tests.support.services.real_run import Run, cleared, read_until
from tests.support.study_files import trained

pytestmark = [pytest.mark.nested, pytest.mark.slow, pytest.mark.timeout(900)]

STUDY = trained(
    name="hung", train="{epochs: 40, batch_size: 64, samples_per_epoch: 256}", budget="{trials: 1}",
    resources="{workers: 2, cpus_per_worker: 1, silence: 90}",
)  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Iterator[Run]:
    run = Run(home=tmp_path / "home", file=tmp_path / "study.yaml")
    run.file.write_text(STUDY)
    with cleared(run):
        yield run


def workers(run: Run) -> list[psutil.Process]:
    """Ray Train's worker processes, one a rank."""
    return [each for each in run.processes() if "RayTrainWorker" in " ".join(each.cmdline())]


def test_a_hung_rank_is_ended_and_its_trial_goes_on(run):
    driver = run.start("run", str(run.file))
    read_until(driver, lambda line: re.search(r"epoch 2/", line) is not None, seconds=400)
    ranks = workers(run)
    assert len(ranks) == 2
    ranks[1].send_signal(signal.SIGSTOP)
    text = read_until(driver, lambda line: "has said nothing for too long" in line, seconds=300)
    assert "2 of its processes ended" in text
    reached = max(int(found) for found in re.findall(r"epoch (\d+)/", text)) if "epoch" in text else 2
    after = read_until(driver, lambda line: f"epoch {reached + 3}/" in line, seconds=400)
    epochs = [int(found) for found in re.findall(r"epoch (\d+)/", after)]
    assert epochs == sorted(set(epochs)), "no epoch is trained twice"
    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=180)
    [trial] = run.trials("hung")
    assert trial["attempts"] == 1, "Ray Train restarts its workers within the attempt"
