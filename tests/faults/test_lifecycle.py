"""Pausing, going on and stopping a study, by Ctrl-C and from another terminal. At most 4 nested trials."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator

import pytest

from tests.support.services.real_run import IN_BACKGROUND, Run, cleared, read_until, wait_until_gone
from tests.support.study_files import trained

pytestmark = [pytest.mark.slow, pytest.mark.nested, pytest.mark.timeout(600)]

STUDY = trained(
    name="long", train="{epochs: 200, batch_size: 64, samples_per_epoch: 256}", budget="{trials: 2}",
    resources="{workers: 1, cpus_per_worker: 1, max_concurrent: 1}",
)  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Iterator[Run]:
    run = Run(home=tmp_path / "home", file=tmp_path / "study.yaml")
    run.file.write_text(STUDY)
    with cleared(run):
        yield run


def test_a_study_pauses_on_ctrl_c_goes_on_and_stops_when_asked(run):
    driver = run.start("run", str(run.file), before=IN_BACKGROUND)
    read_until(driver, lambda line: re.search(r"trial +0  epoch 2/", line) is not None)
    driver.send_signal(signal.SIGINT)
    rest, _ = driver.communicate(timeout=120)
    assert driver.returncode == 1
    assert "pausing: running trials keep a state and leave" in rest
    assert "Go on with: agft resume long" in rest
    assert "Traceback" not in rest
    [trial] = run.trials("long")
    assert trial["state"] == "unfinished"
    reached = trial["epochs"]
    assert reached >= 2

    driver = run.start("resume", "long")
    text = read_until(driver, lambda line: f"epoch {reached + 2}/" in line)
    assert "trial   0  continues" in text
    assert f"epoch {reached}/" not in text, "no epoch is trained again"
    second = run.agft("run", str(run.file), check=False)
    assert second.returncode == 2
    assert "is being driven by process" in second.stderr
    assert "asked: running trials" in run.agft("stop", "long").stdout
    rest, _ = driver.communicate(timeout=180)
    assert driver.returncode == 0, rest
    [trial] = run.trials("long")
    assert (trial["state"], trial["attempts"]) == ("pruned", 2)
    assert trial["reason"] == "study: stop"
    assert "is not running" in run.agft("pause", "long").stdout

    run.agft("stack", "down")
    assert wait_until_gone(run.processes) == []
