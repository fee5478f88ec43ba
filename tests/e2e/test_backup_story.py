"""A stack on PostgreSQL is backed up while a study runs on it, and restored into an empty one that goes on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.stack import postgres
from tests.support.services.real_run import Run, read_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LIGHT = str(Path(__file__).parents[1] / "support" / "light.py")
STUDY = """\
name: kept
model: {arch: tiny-clip, pretrained: bundled}
method: {name: agft, logit_scale: {of_model: 1.0}}
data: {train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}
train: {epochs: 20}
search: {method.scale_ratio: {low: 0.5, high: 1.0}}
scheduler: {name: none}
resources: {workers: 1, cpus_per_worker: 1, max_concurrent: 2}
budget: {trials: 4}
"""


@pytest.fixture
def homes(tmp_path: Path) -> Iterator[tuple[Run, Run]]:
    found = Run(tmp_path / "old", tmp_path / "study.yaml"), Run(tmp_path / "new", tmp_path / "study.yaml")
    found[0].file.write_text(STUDY)
    try:
        yield found
    finally:
        for run in found:
            run.agft("stack", "down", check=False)
            for process in run.processes():
                process.kill()
            shutil.rmtree(postgres.folder_of(run.home.resolve()), ignore_errors=True)  # root's is outside the home


def drive(run: Run, scale: float) -> subprocess.Popen[str]:
    """A driver of light trials in this home."""
    return subprocess.Popen(
        [sys.executable, LIGHT, str(run.file), "--scale", str(scale)], env=run.environment(), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def test_a_running_stack_is_backed_up_and_an_empty_one_goes_on_from_it(homes: tuple[Run, Run], tmp_path: Path) -> None:
    old, new = homes
    old.agft("stack", "up", "--postgres")
    driver = drive(old, 1.0)
    try:
        read_until(driver, lambda line: re.search(r"trial +3  epoch 2/", line) is not None)
        told = old.agft("backup", str(tmp_path / "b.tar"), "--objects", str(tmp_path / "objects")).stdout
        assert "1 studies, " in told
        running = old.trials("kept")
        assert any(trial["state"] == "running" for trial in running), "it was made while the study ran"
    finally:
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()
    old.agft("stack", "down")  # nothing of the old stack is there any more

    told = new.agft("restore-backup", str(tmp_path / "b.tar")).stdout
    assert "1 studies: kept" in told
    assert "unfinished trials go on with `agft resume STUDY`" in told
    restored = {trial["number"]: trial for trial in new.trials("kept")}
    finished = {number for number, trial in restored.items() if trial["state"] == "complete"}
    assert finished
    assert len(finished) < len(restored)
    [status] = json.loads(new.agft("status", "kept", "--json").stdout)
    assert status["state"] == "paused"

    text, _ = drive(new, 0.05).communicate(timeout=400)
    assert "finished" in text, text
    begun = [number for number in set(restored) - finished if restored[number]["epochs"]]
    assert begun
    for number in begun:
        assert f"trial {number:>3}  continues" in text, text
        kept = restored[number]["epochs"]
        for epoch in range(1, kept + 1):
            assert f"trial {number:>3}  epoch {epoch}/" not in text, "no epoch that was kept is trained again"
    after = {trial["number"]: trial for trial in new.trials("kept")}
    assert {trial["state"] for trial in after.values()} == {"complete"}
    assert len(after) == 4
    assert {number: after[number] for number in finished} == {number: restored[number] for number in finished}
