"""When a study has used up what it was given, as a pure function over stored rows and what runs now."""

from __future__ import annotations

from collections.abc import Iterable

from study.config import BudgetConfig
from study.rows import TrialRow

__all__ = ["used_up"]


def used_up(
    budget: BudgetConfig, rows: Iterable[TrialRow], *, driven_seconds: float, running_seconds: float, token: int,
    counts_gpus: bool,
) -> str:  # fmt: skip
    """The sentence why the study ends, or ''. Trials are counted by the searcher, not here.

    `driven_seconds`: wall time of all drivers. `running_seconds`: device-seconds of the attempts that run under
    `token`, of which the rows know only those up to their last report. Without GPUs there are no GPU-hours.
    """
    if budget.hours is not None and driven_seconds > budget.hours * 3600:
        return f"the budget of {budget.hours:g} hours is used up"
    if budget.gpu_hours is not None and counts_gpus:
        ended = sum(
            attempt.device_seconds
            for row in rows
            for attempt in row.attempts
            if attempt.token != token or attempt.ended_ms is not None
        )
        if ended + running_seconds > budget.gpu_hours * 3600:
            return f"the budget of {budget.gpu_hours:g} GPU-hours is used up"
    return ""
