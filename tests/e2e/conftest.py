"""One real study, killed in the middle and finished, that all the end-to-end tests look at. 5 nested trials."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator

import pytest

from tests.support.services.real_run import Run, read_until, wait_until_gone

STUDY = """\
name: thread
model: {arch: tiny-clip, pretrained: bundled}
method: {name: agft, logit_scale: {of_model: 1.0}, scale_ratio: 0.8}
attack: {name: pgd, eps: 4/255, step_size: {of_eps: 0.75}, steps: 2}
data: {train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters, real-digits]}
train: {epochs: 3, batch_size: 64, samples_per_epoch: 1024, optimizer: {name: adamw, lr: 5e-4}}
evaluate:
  select: {attack: {eps: [4/255], steps: 5}, samples: 48}
  final: {attack: {eps: [4/255], steps: 5}, samples: 48}
search:
  method.scale_ratio: {low: 0.5, high: 1.0}
  train.optimizer.lr: {low: 1e-6, high: 2e-3, log: true}
scheduler: {name: asha, grace_fraction: 0.3, reduction_factor: 2}
goal: {metric: robust_accuracy, subject_to: {clean_accuracy: ">= clip * 0.3"}}
budget: {trials: 4}
promote:
  candidates: 1
  model_name: thread-clip
  gates:
    final: false  # 48 images a set are too few to show anything
    sanity: {checks: [deterministic, above-chance, agrees-with-original, zero-gradients]}
seed: 1
"""
SERVICES = (
    "mlflow",
    "weed",
    "infra.stack.keeper",
)  # they outlive the command; Ray's processes must go with their driver


@pytest.fixture(scope="package")
def killed_and_finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The study: SIGKILL when one trial has finished and another is running, then run to the end, then promoted."""
    folder = tmp_path_factory.mktemp("thread")
    run = Run(home=folder / "home", file=folder / "study.yaml")
    run.file.write_text(STUDY)
    try:
        driver = run.start("run", str(run.file))
        first = read_until(driver, lambda line: "of 4 trials done" in line)
        second = read_until(driver, lambda line: re.search(r"trial +\d +epoch", line) is not None)
        run.printed["killed"] = first + second
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        run.printed["before"] = json.dumps(run.trials("thread"))
        left = wait_until_gone(
            lambda: [p for p in run.processes() if not any(name in " ".join(p.cmdline()) for name in SERVICES)]
        )
        run.printed["left"] = ", ".join(process.name() for process in left)
        run.printed["finished"] = run.agft("run", str(run.file)).stdout
        run.printed["promoted"] = run.agft("promote", "thread").stdout
        yield run
    finally:
        run.agft("stack", "down", check=False)
        for process in run.processes():
            process.kill()
