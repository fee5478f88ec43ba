"""The sentences of a running study: one line for an epoch, one for a trial, one for the whole."""

from __future__ import annotations

from typing import Any

__all__ = ["duration", "epoch_line", "study_line"]


def duration(seconds: float) -> str:
    """`3.2 h` or `14 min`."""
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


def epoch_line(number: int, record: dict[str, Any], epochs: int) -> str:
    """One epoch of one trial."""
    best = " (best so far)" if record["best_epoch"] == record["epoch"] else ""
    floor = "" if record["feasible"] else "  below its floor"
    return (
        f"trial {number:>3}  epoch {record['epoch']}/{epochs}  clean {record['clean_accuracy']:6.1%}  "
        f"robust {record['robust_accuracy']:6.1%}{best}{floor}"
    )


def study_line(done: int, budget: int, pruned: int, seconds_each: float) -> str:
    """How far the study is, and when it may end if trials go on finishing every `seconds_each` seconds."""
    left = budget - done
    eta = f", about {duration(seconds_each * left)} left" if left > 0 else ""
    return f"{done} of {budget} trials done ({pruned} stopped early){eta}"
