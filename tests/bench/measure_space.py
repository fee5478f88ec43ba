"""Measure a grid of AGFT settings on the tiny CLIP once: accuracy after every epoch, and what it cost.

    PYTHONPATH=. python tests/bench/measure_space.py tiny-wide [--part 1/2]

writes one line a setting into the landscape's file (`tests/support/landscapes.py`), and the unmodified CLIP's
accuracies beside it; it goes on where it was when started again. `--part`: every second setting, for two processes side
by side.
`search_quality.py` replays searches over these lines instead of training for every one.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from tests.support.landscapes import LANDSCAPES, Landscape
from trainers.evaluation.measure import evaluate_sets
from trainers.model.pretrained import load_clip
from trainers.schema.records import Decision, Progress
from trainers.training.loop import train
from trainers.training.update import NonFinite
from trainers.trial_config import TrialConfig


def points(landscape: Landscape) -> list[dict[str, float]]:
    """Every combination of the levels, shuffled, so that the first lines are a fair sample of the grid."""
    grid = list(landscape.points())
    random.Random(0).shuffle(grid)
    return grid


def measure(landscape: Landscape, point: dict[str, float]) -> dict[str, Any]:
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
            train(TrialConfig.model_validate(landscape.trial(point)), report=report, workdir=Path(folder))
        except NonFinite as error:
            failure = str(error)
    return {"point": point, "epochs": epochs, "failure": failure, "cpu_seconds": time.process_time() - began}


def unmodified(landscape: Landscape) -> dict[str, float]:
    """Accuracies of the CLIP that every trial starts from, as a trial's are measured: means over the sets."""
    config = TrialConfig.model_validate(landscape.trial(points(landscape)[0]))
    found = evaluate_sets(load_clip(config.model), config.evaluate).values()
    return {
        "clean_accuracy": statistics.fmean(each.clean_accuracy for each in found),
        "robust_accuracy": statistics.fmean(each.robust_accuracy for each in found),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("landscape", choices=LANDSCAPES)
    parser.add_argument("--part", default="1/1", help="of so many, e.g. 1/2")
    wanted = parser.parse_args()
    landscape = LANDSCAPES[wanted.landscape]
    part, parts = map(int, wanted.part.split("/"))
    torch.set_num_threads(1)
    if not landscape.unmodified.exists():
        landscape.unmodified.write_text(json.dumps(unmodified(landscape)) + "\n")
    path = landscape.settings
    done = [json.loads(line)["point"] for line in path.read_text().splitlines()] if path.exists() else []
    for point in [point for point in points(landscape)[part - 1 :: parts] if point not in done]:
        line = json.dumps(measure(landscape, point))
        with path.open("a") as file:
            file.write(line + "\n")


if __name__ == "__main__":
    main()
