"""The sentences of a running study: one line for an epoch, one for a trial, one for the whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from study.results import best_trial
from study.rows import StudyRow, TrialRow

__all__ = ["duration", "epoch_line", "message_of", "study_line", "waiting_line"]


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


def waiting_line(number: int, need: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Why nothing of a study runs: what one trial needs, and what the cluster has left."""
    left = ", ".join(f"{amount:g} {name} ({free.get(name, 0.0):g} of {total.get(name, 0.0):g} are free)"
                     for name, amount in need.items())  # fmt: skip
    return f"trial {number:>3}  waits for room on the cluster: it needs {left}"


def message_of(study: StudyRow, state: str, trials: Sequence[TrialRow]) -> dict[str, Any]:
    """What a webhook is told: how many trials there are in which state, and the best one so far."""
    goal = study.spec.goal.resolve(study.baseline) if study.baseline else None
    best = best_trial(trials, goal) if goal else None
    counts = {name: sum(row.state == name for row in trials) for name in ("complete", "pruned", "failed", "running")}
    return {
        "study": study.name,
        "state": state,
        "trials": {**counts, "budget": study.spec.budget.trials},
        "best": best and best.last and {
            "trial": best.number, "params": best.params, "epoch": best.last["best_epoch"],
            "clean_accuracy": best.last["best_clean_accuracy"], "robust_accuracy": best.last["best_robust_accuracy"],
        },
    }  # fmt: skip
