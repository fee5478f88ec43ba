"""When a trial is stopped, and when a study has found all it will find: pure functions over stored rows.

Nothing here kills anything, and nothing is remembered. A trial is compared with those that it knows
(`study.search.knowledge`), whose records do not change any more, so a verdict does not depend on when it is asked for.
Rules (table STOPPING):

asha    ASHA, stopping variant (Li et al. 2020, "A System for Massively Parallel Hyperparameter Tuning",
        arXiv:1810.05934): at a rung a trial goes on if it is among the best 1/reduction_factor of the values there.
        (There whoever came first sets the mark; here those that the trial knows do.)
median  The median stopping rule (Golovin et al. 2017, "Google Vizier", section 3.2.2): a trial stops if its best value
        so far is below the median of the others' at the same epoch. (Vizier compares with running averages; the best
        so far is what a trial is judged by here, and what Optuna's MedianPruner compares.)
none    Every trial goes on.

`patience` ends a trial that stands still, whatever the table says. Such a trial is no worse one: it counts as complete.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Sequence

from study.results.ranking import score
from study.search.knowledge import as_stopped
from study.spec.config import BudgetConfig, SchedulerConfig, StoppingRule, StudyConfig
from study.store.rows import TrialRow
from trainers.schema.records import EpochRecord
from trainers.schema.training import Goal

Verdict = tuple[str, str]
ROUNDING = 1e-12  # 0.31 - 0.30 is a little less than 0.01


def rungs(config: SchedulerConfig, epochs: int) -> tuple[int, ...]:
    """Epochs after which a trial of so many epochs is judged, all below the last one."""
    found = set(config.row.rungs(config, epochs))
    if config.patience is not None:
        found |= set(range(max(_grace(config, epochs), config.patience + 1), epochs))
    return tuple(sorted(found))


def _grace(config: SchedulerConfig, epochs: int) -> int:
    return max(1, math.ceil(config.grace_fraction * epochs))


def verdict(config: SchedulerConfig, trial: TrialRow, known: Sequence[TrialRow], *, epoch: int, goal: Goal) -> Verdict:
    """`("continue" | "stop", reason)` for a trial that has just reached `epoch`.

    `known`: the trials that it knows, in any state; those that never reached the epoch do not count. While fewer than
    `min_trials` of them did, nobody is stopped by comparison.
    """
    planned = trial.config.get("train", {}).get("epochs")
    if planned is not None and epoch >= planned:
        return "continue", f"epoch {epoch}: its last one"
    if plateau(config, trial, epoch=epoch, goal=goal):
        return "stop", f"epoch {epoch}: {config.patience} epochs without an improvement"
    if config.patience is not None and planned is not None and epoch not in config.row.rungs(config, planned):
        return "continue", f"epoch {epoch}: still improving"
    own = _at(trial, epoch, goal)
    assert own is not None, "the verdict is asked for an epoch that is not recorded"
    others = [value for row in known if (value := _at(row, epoch, goal)) is not None]
    if config.row.stops and len(others) < config.min_trials:
        return "continue", f"epoch {epoch}: only {len(others)} of {config.min_trials} known trials to compare with"
    decision, reason = config.row.verdict(config, own, others)
    return decision, f"epoch {epoch}: {reason}"


def _at(row: TrialRow, epoch: int, goal: Goal) -> float | None:
    """Best value so far at an epoch."""
    record = next((each for each in row.epochs if each.epoch == epoch), None)
    return None if record is None else score(record, goal)


def _asha(config: SchedulerConfig, own: float, others: list[float]) -> Verdict:
    everyone, factor = sorted([*others, own], reverse=True), config.reduction_factor
    if len(everyone) < factor:
        return "continue", f"only {len(everyone)} of {factor} trials to compare"
    cutoff = everyone[len(everyone) // factor - 1]
    place = sum(value > own for value in others) + 1
    comparison = f"{own:.4f} is place {place} of {len(everyone)}, cut-off {cutoff:.4f}"
    return ("continue" if own >= cutoff else "stop"), comparison


def _median(config: SchedulerConfig, own: float, others: list[float]) -> Verdict:
    if not others:
        return "continue", "no other trial to compare with"
    middle = statistics.median(others)
    comparison = f"{own:.4f} against {middle:.4f}, the median of {len(others)} others"
    return ("continue" if own >= middle - ROUNDING else "stop"), comparison


def _none(config: SchedulerConfig, own: float, others: list[float]) -> Verdict:
    return "continue", f"{own:.4f}, and every trial runs to its end"


def _asha_rungs(config: SchedulerConfig, epochs: int) -> tuple[int, ...]:
    """grace, grace * factor, ..."""
    found, rung = [], _grace(config, epochs)
    while rung < epochs:
        found.append(rung)
        rung *= config.reduction_factor
    return tuple(found)


def _median_rungs(config: SchedulerConfig, epochs: int) -> tuple[int, ...]:
    """Every epoch from the grace on."""
    return tuple(range(_grace(config, epochs), epochs))


def _few_remarks(spec: StudyConfig) -> Iterator[str]:
    lag = 0 if spec.lag == "auto" else spec.lag
    if spec.budget.trials - 1 - lag < spec.scheduler.min_trials:
        whom = f"no trial of {spec.budget.trials} knows so many" + (f" (lag {lag})" if lag else "")
        yield f"scheduler.min_trials: {spec.scheduler.min_trials}: {whom}, so none is stopped by comparison"


ASHA = StoppingRule(_asha_rungs, _asha, reads=("reduction_factor", "min_trials", "finish"), remarks=_few_remarks)
MEDIAN = StoppingRule(_median_rungs, _median, reads=("min_trials", "finish"), remarks=_few_remarks)
NONE = StoppingRule(lambda config, epochs: (), _none, stops=False)


def plateau(config: SchedulerConfig, trial: TrialRow, *, epoch: int, goal: Goal) -> bool:
    """Whether the last `patience` epochs up to `epoch` brought less than `min_delta` over the best before them."""
    if config.patience is None or epoch <= config.patience:
        return False
    before, now = _at(trial, epoch - config.patience, goal), _at(trial, epoch, goal)
    return before is not None and now is not None and not _improves(now, before, config.min_delta)


def _improves(value: float, best: float, min_delta: float) -> bool:
    return value > best and value - best >= min_delta - ROUNDING


def to_finish(trials: Sequence[TrialRow], goal: Goal, count: int) -> list[TrialRow]:
    """Of the trials that the stopping rule ended early, the `count` best at their end, best first (`scheduler.finish`).

    Those that have been trained to their end meanwhile are among them, as they were when they were stopped.
    """
    stopped = [as_stopped(row) for row in trials if row.stopped_at is not None and row.finished]
    found = [row for row in stopped if row.state == "pruned" and row.last and row.last.epoch == row.stopped_at]
    return sorted(found, key=lambda row: (-score(row.epochs[-1], goal), row.number))[:count]


def stagnation(known: Sequence[TrialRow], goal: Goal, config: BudgetConfig) -> str | None:
    """Why a trial that knows these should not be started: the last `budget.patience` of them improved nothing.

    None: it should. "Last" goes by number. Complete trials can improve, pruned ones cannot; failed and dropped ones do
    not count at all. With several metrics a trial improves the front if no earlier one is as good in all of them.
    """
    if config.patience is None:
        return None
    ends = sorted((t for t in known if t.state in ("complete", "pruned")), key=lambda t: t.number)
    points = [None if t.state == "pruned" or t.last is None else _point(t.last, goal) for t in ends]
    earlier = [point for point in points[: -config.patience] if point is not None]
    latest = [point for point in points[-config.patience :] if point is not None]
    if not earlier or any(all(_beyond(new, old, config.min_delta) for old in earlier) for new in latest):
        return None
    least = f" by {config.min_delta:g} or more" if config.min_delta else ""
    return f"the last {config.patience} known trials have not improved the best{least} (budget.patience)"


def _beyond(new: tuple[float, ...], old: tuple[float, ...], min_delta: float) -> bool:
    """Whether a trial is better than another in some metric."""
    return any(_improves(*pair, min_delta) for pair in zip(new, old, strict=True))


def _point(record: EpochRecord, goal: Goal) -> tuple[float, ...]:
    """A trial's numbers, one a metric; below every accuracy where a floor is missed."""
    if record.best_feasible:
        return tuple(record.at_best(name) for name in goal.names)
    return (score(record, goal),) * len(goal.names)


# When a study has used up what it was given, as a pure function over stored rows and what runs now.


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
