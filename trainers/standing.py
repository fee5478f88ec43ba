"""Where a run stands after an evaluation: its accuracies now, and those of its best epoch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainers.config import Goal
from trainers.records import EpochRecord, is_better, violation
from trainers.verdicts import SetResult

__all__ = ["standing"]


@dataclass(frozen=True)
class Accuracy:
    """The two numbers that a goal speaks about."""

    clean_accuracy: float
    robust_accuracy: float


def standing(epoch: int, results: list[SetResult], last: EpochRecord | None, goal: Goal) -> dict[str, Any]:
    """An epoch record's fields about accuracies and the best epoch, from the dev sets' counts and the record before."""
    now = Accuracy(
        sum(result.clean_accuracy for result in results) / len(results),
        sum(result.robust_accuracy for result in results) / len(results),
    )
    before = None if last is None else Accuracy(last.best_clean_accuracy, last.best_robust_accuracy)
    better = is_better(now, before, goal)
    best = now if before is None or better else before
    return {
        "clean_accuracy": now.clean_accuracy,
        "robust_accuracy": now.robust_accuracy,
        "datasets": {result.name: result.scores() for result in results},
        "feasible": violation(now, goal) == 0,
        "best_epoch": epoch if last is None or better else last.best_epoch,
        "best_clean_accuracy": best.clean_accuracy,
        "best_robust_accuracy": best.robust_accuracy,
        "best_feasible": violation(best, goal) == 0,
    }
