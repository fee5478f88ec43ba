"""Measure a grid of AGFT settings on the tiny CLIP once: accuracy after every epoch, and what it cost.

`python tests/bench/measure_space.py tests/bench/results/search-space.jsonl` writes one line a setting and goes on where
it was when started again. `search_quality.py` replays searches over these lines instead of training for every one.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from trainers.schema.records import Decision, Progress
from trainers.training.loop import train
from trainers.training.update import NonFinite
from trainers.trial_config import TrialConfig

LEVELS: dict[str, list[float]] = {
    "train.optimizer.lr": [2e-4, 5e-4, 1.2e-3, 3e-3, 7e-3],
    "method.scale_ratio": [0.4, 0.7, 1.0, 1.3],
    "method.logit_scale": [0.5, 1.0, 1.8, 3.0],
    "attack.eps": [2 / 255, 5 / 255, 8 / 255],
}
EPOCHS = 6


def points() -> list[dict[str, float]]:
    """Every combination of the levels, shuffled, so that the first lines are a fair sample of the grid."""
    grid = [dict(zip(LEVELS, values, strict=True)) for values in itertools.product(*LEVELS.values())]
    random.Random(0).shuffle(grid)
    return grid


def config(point: dict[str, float]) -> TrialConfig:
    """A fine-tuning run of 6 short epochs, measured at 6/255 whatever it trains with."""
    eps = point["attack.eps"]
    return TrialConfig.model_validate(
        {
            "model": {"arch": "tiny-clip", "pretrained": "bundled"},
            "method": {
                "name": "agft", "logit_scale": {"of_model": point["method.logit_scale"]},
                "scale_ratio": point["method.scale_ratio"], "feature_weight": 20, "attack_on": "total",
            },
            "attack": {"eps": eps, "step_size": {"of_eps": 0.75}, "steps": 2},
            "data": {"train": "tiny-color-shapes"},
            "train": {
                "epochs": EPOCHS, "batch_size": 64, "samples_per_epoch": 512, "warmup": 0.05,
                "optimizer": {"name": "adamw", "lr": point["train.optimizer.lr"]},
            },
            "evaluate": {
                "name": "dev", "datasets": ["tiny-shapes", "tiny-digits"],
                "attacks": [{"attack": {"name": "pgd", "steps": 5}, "eps": [6 / 255], "samples": 120}],
            },
        }
    )  # fmt: skip


def measure(point: dict[str, float]) -> dict[str, Any]:
    """Accuracies after each epoch and the CPU seconds (one thread) up to then, start-up of the model included."""
    epochs: list[dict[str, float]] = []
    began = time.process_time()

    def report(progress: Progress) -> Decision:
        record = progress.record
        seconds = round(time.process_time() - began, 3)
        epochs.append({"clean": record.clean_accuracy, "robust": record.robust_accuracy, "cpu_seconds": seconds})
        return Decision.CONTINUE

    failure = None
    with tempfile.TemporaryDirectory() as folder:
        try:
            train(config(point), report=report, workdir=Path(folder))
        except NonFinite as error:
            failure = str(error)
    return {"point": point, "epochs": epochs, "failure": failure, "cpu_seconds": time.process_time() - began}


def main() -> None:
    path = Path(sys.argv[1])
    torch.set_num_threads(1)
    done = [json.loads(line)["point"] for line in path.read_text().splitlines()] if path.exists() else []
    for point in [point for point in points() if point not in done]:
        line = json.dumps(measure(point))
        with path.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
