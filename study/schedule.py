"""Early stopping as pure functions over stored values. Nothing here kills anything.

ASHA, stopping variant (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning", arXiv:1810.05934): at
a rung a trial goes on if it is among the best 1/reduction_factor of the values seen there so far. The rungs are read
from the study store at every decision, so a restarted driver decides as if it had never been away.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from study.config import SchedulerConfig
from study.store import TrialRow

__all__ = ["asha_verdict", "rungs", "score"]


def rungs(config: SchedulerConfig, epochs: int) -> tuple[int, ...]:
    """Epochs after which a trial can be stopped: grace, grace * factor, ... below the last epoch."""
    if config.name == "none":
        return ()
    found, rung = [], max(1, math.ceil(config.grace_fraction * epochs))
    while rung < epochs:
        found.append(rung)
        rung *= config.reduction_factor
    return tuple(found)


def score(record: dict[str, Any], metric: str, at_least: Mapping[Any, float]) -> float:
    """One number that ranks as the study's rule does: feasible epochs by the metric, the others below all of them.

    Infeasible epochs get minus their violation, summed over the floors, which is below every accuracy.
    """
    if record["best_feasible"]:
        return float(record[f"best_{metric}"])
    return -sum(max(0.0, floor - record[f"best_{name}"]) for name, floor in at_least.items())


def asha_verdict(
    trial: TrialRow, others: Iterable[TrialRow], *, rung: int, metric: str, at_least: Mapping[Any, float], factor: int
) -> tuple[str, str]:
    """`("continue" | "stop", reason)` for a trial that has just reached `rung`.

    `others` may hold trials in any state; those that never reached the rung do not count. The first trials at a rung
    always go on, since there is nothing to compare them with.
    """

    def at_rung(row: TrialRow) -> float | None:
        record = next((epoch for epoch in row.epochs if epoch["epoch"] == rung), None)
        return None if record is None else score(record, metric, at_least)

    own = at_rung(trial)
    assert own is not None, "the verdict is asked for an epoch that is not recorded"
    values = [value for row in others if row.number != trial.number and (value := at_rung(row)) is not None]
    everyone = sorted([*values, own], reverse=True)
    if len(everyone) < factor:
        return "continue", f"epoch {rung}: only {len(everyone)} of {factor} trials to compare"
    cutoff = everyone[len(everyone) // factor - 1]
    place = sum(value > own for value in values) + 1
    comparison = f"epoch {rung}: {own:.4f} is place {place} of {len(everyone)}, cut-off {cutoff:.4f}"
    return ("continue" if own >= cutoff else "stop"), comparison
