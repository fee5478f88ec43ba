"""Pure functions over trial records: which trials count, which is the best, what the table says."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

from study.store.rows import TrialRow
from trainers.schema.records import EpochRecord, Score, calibrations_of
from trainers.schema.training import ACCURACIES, CALIBRATIONS, Goal, Metric


def score(record: EpochRecord, goal: Goal) -> float:
    """One number that ranks as the study's rule does: feasible epochs by the goal's value, the others below them.

    Infeasible epochs get minus their violation, summed over the floors, which is below every accuracy.
    """
    if record.best_feasible:
        return goal.value(record.at_best)
    return -sum(max(0.0, floor - record.at_best(name)) for name, floor in goal.at_least.items())


# {clean_accuracy, robust_accuracy, the calibrations or None, datasets: {name: {eps: Score}}}
Measurement = dict[str, Any]


def ranked(trials: Sequence[TrialRow], goal: Goal) -> list[TrialRow]:
    """Full-length trials, best first: feasible ones by the goal's metric, then the others by their violation.

    An early-stopped trial never enters: its value is that of another training length.
    """
    complete = [(trial, trial.last) for trial in trials if trial.state == "complete" and trial.last is not None]
    return [trial for trial, last in sorted(complete, key=lambda pair: (-score(pair[1], goal), pair[0].number))]


def best_trial(trials: Sequence[TrialRow], goal: Goal) -> TrialRow | None:
    """The best full-length trial that reaches every floor, or None."""
    first = next(iter(ranked(trials, goal)), None)
    return first if first is not None and first.last and first.last.best_feasible else None


def front_metrics(metrics: Sequence[Metric]) -> tuple[Metric, ...]:
    """What a front is of: the goal's metrics if they are several, else both accuracies."""
    return tuple(name for name in (*ACCURACIES, *CALIBRATIONS) if name in metrics) if len(metrics) > 1 else ACCURACIES


def pareto_front(trials: Sequence[TrialRow], metrics: Sequence[Metric] = ()) -> list[TrialRow]:
    """Full-length trials that no other one beats in every metric of a goal with several, else in both accuracies; by
    the rising first of them, clean before robust.

    Of trials with equal values the first stays. Floors play no part: the front shows what they cost.
    """
    names = front_metrics(metrics)
    complete = [(tuple(map(t.last.at_best, names)), t) for t in trials if t.state == "complete" and t.last is not None]
    front: list[tuple[tuple[float, ...], TrialRow]] = []
    for values, trial in sorted(complete, key=lambda pair: (*(-value for value in pair[0]), pair[1].number)):
        if not any(all(map(operator.ge, other, values)) for other, _ in front):
            front.append((values, trial))
    return [trial for _, trial in front[::-1]]


def best_so_far(trials: Sequence[TrialRow], goal: Goal) -> list[tuple[TrialRow, TrialRow | None]]:
    """Every finished trial by the time of its end, with the best full-length one known then (None: none yet)."""
    done = sorted((trial for trial in trials if trial.finished), key=lambda t: (t.ended_ms or 0, t.number))
    found: list[tuple[TrialRow, TrialRow | None]] = []
    best: TrialRow | None = None
    for trial in done:
        best = best_trial([trial] if best is None else [best, trial], goal)
        found.append((trial, best))
    return found


def trial_table(trials: Sequence[TrialRow], goal: Goal, *, token: int | None = None) -> list[dict[str, Any]]:
    """One row a trial, best first; then those that were stopped, failed or still run, by number.

    `token`: of the driver that drives now, if any. What it has not under way is `unfinished`, and does not run.
    """
    order = {trial.number: place for place, trial in enumerate(ranked(trials, goal))}
    rows = []
    for trial in sorted(trials, key=lambda t: (order.get(t.number, len(order)), t.number)):
        last = trial.last
        idle = trial.state == "running" and (token is None or not trial.runs_under(token))
        rows.append(
            {
                "number": trial.number,
                "state": "unfinished" if idle else trial.state,
                "epochs": last.epoch if last else 0,
                "of_epochs": trial.config.get("train", {}).get("epochs"),
                "clean_accuracy": last.best_clean_accuracy if last else None,
                "robust_accuracy": last.best_robust_accuracy if last else None,
                "clean_calibration": last.best_clean_calibration if last else None,
                "robust_calibration": last.best_robust_calibration if last else None,
                "best_epoch": last.best_epoch if last else None,
                "feasible": last.best_feasible if last else None,
                "params": trial.params,
                "device_seconds": trial.device_seconds,
                "reason": trial.stop_reason,
                "failure_kind": trial.failure_kind,
                "attempts": len(trial.attempts),
            }
        )
    return rows


def summary(datasets: dict[str, dict[str, dict[str, Any]]]) -> Measurement:
    """Means beside the counts they come from."""
    scores = [list(by_eps.values()) for by_eps in datasets.values()]
    return {
        "clean_accuracy": sum(each[0]["clean_accuracy"] for each in scores) / len(scores),
        "robust_accuracy": sum(sum(s["robust_accuracy"] for s in each) / len(each) for each in scores) / len(scores),
        **calibrations_of({name: _scores(by_eps) for name, by_eps in datasets.items()}),
        "datasets": datasets,
    }


def _scores(by_eps: dict[str, dict[str, Any]]) -> dict[str, Score]:
    return {label: Score.model_validate(score) for label, score in by_eps.items()}
