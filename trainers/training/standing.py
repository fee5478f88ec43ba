"""Where a run stands after an evaluation: its accuracies now, and those of its best epoch."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from trainers.evaluation.verdicts import SetResult
from trainers.schema import records
from trainers.schema.records import EpochRecord
from trainers.schema.training import Goal


def standing(epoch: int, results: list[SetResult], last: EpochRecord | None, goal: Goal) -> dict[str, Any]:
    """An epoch record's fields about accuracies and the best epoch, from the dev sets' counts and the record before."""
    datasets = {result.name: result.scores() for result in results}
    now = records.accuracy_of(datasets)
    return {**vars(now), "datasets": datasets, **records.standing(epoch, now, last, goal)}


# What an epoch took of its machine, measured in the worker itself: no service, no thread, microseconds of work.

MEMINFO = Path("/proc/meminfo")
BYTES_OF_MAXRSS = 1 if sys.platform == "darwin" else 1024


class Usage:
    """Begins to count when it is made, and again at every `take`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._begin()

    def _begin(self) -> None:
        self.wall, self.cpu = time.monotonic(), time.process_time()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def take(self) -> dict[str, float]:
        """Since the last time, of this process: `cpu_percent` (of one core), `memory_gb` (its peak since it started),
        `gpu_memory_gb` and `gpu_memory_percent` (peak); of the whole node: `node_memory_percent` (now, Linux only)."""
        wall = max(1e-9, time.monotonic() - self.wall)
        found = {
            "cpu_percent": 100 * (time.process_time() - self.cpu) / wall,
            "memory_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * BYTES_OF_MAXRSS / 1e9,
        }
        if MEMINFO.is_file():
            lines = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
            free, total = (float(lines[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
            found["node_memory_percent"] = 100 * (1 - free / total)
        if self.device.type == "cuda":
            peak = torch.cuda.max_memory_allocated(self.device)
            found["gpu_memory_gb"] = peak / 1e9
            found["gpu_memory_percent"] = 100 * peak / torch.cuda.get_device_properties(self.device).total_memory
        self._begin()
        return {name: round(value, 3) for name, value in found.items()}
