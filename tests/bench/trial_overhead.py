"""Seconds of a real nested trial outside training.

From its start to its first update, from its last report to its end, and from there to the next trial's start.

    PYTHONPATH=. python tests/bench/trial_overhead.py [--trials 12] [--side-by-side 1] [--workers 1] [--out FILE]

Trials of one epoch of 64 images on the tiny CLIP, driven by `agft run` in a home of its own. Times are read from the
study store: a trial's start and end are its driver's; the first update began when the first epoch's record was made,
less its training and evaluation. The first trial also warms the disk's caches and is left out. Use a quiet machine; the
load is on record. An earlier version of the service is measured by this file in a checkout of it, from there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from study.store.rows import TrialRow
from study.store.store import StudyStore

AGFT = [sys.executable, "-c", "from study.cli.main import main; main()"]
STUDY = """\
name: overhead
model: {{arch: tiny-clip, pretrained: bundled}}
method: {{name: agft, logit_scale: {{of_model: 1.0}}}}
attack: {{name: pgd, eps: 4/255, steps: 1}}
data: {{train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}}
train: {{epochs: 1, batch_size: 64, samples_per_epoch: 64}}
evaluate: {{select: {{attack: {{eps: [4/255], steps: 1}}, samples: 16}}}}
scheduler: {{name: none}}
sampler: {{name: random}}
search: {{method.scale_ratio: {{low: 0.5, high: 1.0}}}}
resources: {{workers: {workers}, cpus_per_worker: 1, max_concurrent: {side_by_side}}}
budget: {{trials: {trials}}}
"""


def phases(rows: list[TrialRow]) -> dict[str, list[float]]:
    """Seconds by phase, one number a trial."""
    found: dict[str, list[float]] = {"start to first update": [], "training": [], "last report to end": [], "whole": []}
    for row in rows:
        record = row.epochs[0]
        assert row.ended_ms is not None
        inside = record.train_seconds + record.eval_seconds
        whole = (row.ended_ms - row.started_ms) / 1000
        start = (record.timestamp_ms - row.started_ms) / 1000 - inside
        found["start to first update"].append(start)
        found["training"].append(inside)
        found["last report to end"].append(whole - start - inside)
        found["whole"].append(whole)
    return found


def pauses(rows: list[TrialRow], side_by_side: int) -> list[float]:
    """Seconds between a trial's end and the start of the one that takes its place; one after the other only."""
    if side_by_side > 1:
        return []
    return [(after.started_ms - (before.ended_ms or 0)) / 1000 for before, after in itertools.pairwise(rows)]


def gaps(rows: list[TrialRow], side_by_side: int) -> list[float]:
    """Seconds between a trial's last report and the first update of the one that takes its place."""
    if side_by_side > 1:
        return []
    first = [row.epochs[0].timestamp_ms / 1000 - row.epochs[0].train_seconds - row.epochs[0].eval_seconds
             for row in rows]  # fmt: skip
    return [after - row.epochs[-1].timestamp_ms / 1000 for row, after in zip(rows, first[1:], strict=False)]


def run(trials: int, side_by_side: int, workers: int, home: Path) -> tuple[list[TrialRow], float]:
    """The study's trials by number, and the seconds of the whole command."""
    file = home / "overhead.yaml"
    file.write_text(STUDY.format(trials=trials, side_by_side=side_by_side, workers=workers))
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MLFLOW_", "AGFT_"))}
    environment = {**clean, "AGFT_HOME": str(home)}
    began = time.perf_counter()
    try:
        subprocess.run([*AGFT, "run", str(file)], env=environment, check=True, stdout=sys.stderr)
    finally:
        seconds = time.perf_counter() - began
        subprocess.run([*AGFT, "stack", "down"], env=environment, check=True, stdout=sys.stderr)
    return StudyStore(f"sqlite:///{home}/studies.db", "overhead").trials(), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--side-by-side", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1, help="of each trial")
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="agft-overhead-", dir="/tmp") as folder:
        rows, seconds = run(wanted.trials, wanted.side_by_side, wanted.workers, Path(folder))
    measured = {
        **phases(rows[1:]),
        "pause before the next": pauses(rows[1:], wanted.side_by_side),
        "last report to the next first update": gaps(rows[1:], wanted.side_by_side),
    }
    record: dict[str, Any] = {
        "commit": commit.stdout.strip(), "trials": len(rows), "side_by_side": wanted.side_by_side,
        "workers": wanted.workers, "cpus": os.cpu_count(), "load_before": load, "command_seconds": round(seconds, 1),
        "seconds": {
            name: {"median": round(statistics.median(values), 2), "low": round(min(values), 2),
                   "high": round(max(values), 2)}
            for name, values in measured.items() if values
        },
    }  # fmt: skip
    print(json.dumps(record, indent=1))
    if wanted.out:
        wanted.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
