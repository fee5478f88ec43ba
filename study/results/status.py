"""How far studies are, from their database alone: any terminal sees the same, whoever drives them, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from study.results.ranking import best_trial, trial_table
from study.store.rows import StudyRow, TrialRow
from trainers.schema.records import Sign

ALL_DONE = "every trial of the budget is done"  # why a study has finished, if nothing else ended it
COUNTED = ("complete", "pruned", "failed")  # a dropped trial is nobody's any more


def live_state(study: StudyRow) -> str:
    """queued, running, paused, interrupted, stopped, finished or failed.

    `queued`: stored, and no driver has come yet; `interrupted`: it should be running, but its driver is silent.
    """
    if study.state == "running" and study.lease_seconds <= 0:
        return "interrupted"
    return "queued" if study.state == "new" else study.state


def study_status(
    study: StudyRow, trials: Sequence[TrialRow], now: float, *, signs: Mapping[int, Sign] | None = None
) -> dict[str, Any]:
    """One study for machines; `now` is the database's clock. Keys are only ever added."""
    state = live_state(study)
    goal = study.goal
    best = best_trial(trials, goal) if goal else None
    host, pid = (study.lease_owner or "|").split("|")[:2]
    live = state == "running"
    return {
        "study": study.name,
        "state": state,
        "message": study.message,
        "desired": study.desired,
        "baseline": study.baseline and study.baseline.model_dump(mode="json"),
        "budget": study.spec.budget.trials,
        "wanted": wanted(study, trials),
        "counts": counts(study, trials, live=live),
        "best": None if best is None or best.last is None else {
            "trial": best.number, "epoch": best.last.best_epoch,
            "clean_accuracy": best.last.best_clean_accuracy, "robust_accuracy": best.last.best_robust_accuracy,
            "clean_calibration": best.last.best_clean_calibration,
            "robust_calibration": best.last.best_robust_calibration,
        },
        "eta_seconds": eta_seconds(study, trials, now) if live else None,
        "device_hours": sum(trial.device_seconds for trial in trials) / 3600,
        "driven_hours": study.driven_seconds / 3600,
        "created_ms": study.created_ms,
        "driver": {"host": host, "pid": int(pid), "token": study.token} if host else None,
        "silent_seconds": max(0.0, -study.lease_seconds) if state == "interrupted" else None,
        "progress": {str(n): {**sign.model_dump(), "seconds_left": sign.seconds_left}
                     for n, sign in sorted((signs or {}).items())} if live else {},
        "trials": trial_table(trials, goal, token=study.token if live else None) if goal else [],
    }  # fmt: skip


def counts(study: StudyRow, trials: Sequence[TrialRow], *, live: bool) -> dict[str, int]:
    """Trials by what they are; `done` + `running` + `queued` is what the study is to have.

    Of a study that was stopped nothing is queued.
    """
    found = {state: sum(trial.state == state for trial in trials) for state in (*COUNTED, "dropped")}
    done = sum(found[state] for state in COUNTED)
    running = sum(trial.runs_under(study.token) for trial in trials) if live else 0
    left = 0 if study.state == "stopped" else wanted(study, trials) - done - running
    return {
        "done": done, "running": running, "queued": max(0, left),
        "complete": found["complete"], "stopped_early": found["pruned"], "failed": found["failed"],
        "dropped": found["dropped"],
    }  # fmt: skip


def wanted(study: StudyRow, trials: Sequence[TrialRow]) -> int:
    """How many trials the study is to have: its budget, and those that are run again beside it."""
    return study.spec.budget.trials + sum(t.rerun_of is not None and t.state != "dropped" for t in trials)


def eta_seconds(study: StudyRow, trials: Sequence[TrialRow], now: float) -> float | None:
    """Mean time of the trials that are done, times what is left, over the trials that run side by side now.

    None while nothing is done or nothing runs. What running trials have behind them counts, at most a whole trial.
    """
    done = [seconds for trial in trials if trial.state in COUNTED and (seconds := _seconds(trial)) is not None]
    running = [trial for trial in trials if trial.runs_under(study.token)]
    if not done or not running:
        return None
    mean = sum(done) / len(done)
    left = wanted(study, trials) - sum(trial.state in COUNTED for trial in trials)
    behind = sum(min(mean, now - max(a.started_ms for a in trial.attempts) / 1000) for trial in running)
    return max(0.0, mean * left - behind) / len(running)


def _seconds(trial: TrialRow) -> float | None:
    """Wall time of all attempts; None if one of them ended nobody knows when."""
    if any(attempt.ended_ms is None for attempt in trial.attempts):
        return None
    return sum(((attempt.ended_ms or 0) - attempt.started_ms) / 1000 for attempt in trial.attempts) or None
