"""How a trial may have ended, and which stopped trials may have been trained to their end.

Why a trial failed, when a study was stopped and what was dropped are facts that nothing derives: here they must only
fit the epochs and verdicts beside them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from study.audit.findings import Finding
from study.search.knowledge import as_known
from study.search.stopping import plateau, to_finish
from study.spec.config import StudyConfig
from study.store.rows import TrialRow
from trainers.schema.training import Goal

STATES = ("running", "complete", "pruned", "failed", "dropped")


def trial(spec: StudyConfig, goal: Goal, row: TrialRow, lag: int) -> Iterator[Finding]:
    """Its state and the reason for it beside its epochs and verdicts."""
    number, planned, reached = row.number, int(row.config["train"]["epochs"]), row.last.epoch if row.last else 0
    if row.state not in STATES:
        yield Finding("state", row.state, None, f"one of {', '.join(STATES)}", trial=number)
    if reached > planned:
        yield Finding("epochs", reached, planned, "no trial is longer than train.epochs", trial=number)
    if row.finishing and (not spec.scheduler.finish or row.stopped_at is None):
        yield Finding("finishing", True, False, "scheduler.finish, of a trial that was stopped", trial=number)
    if not row.finishing and row.stopped_at is not None and reached > row.stopped_at:
        rule = "a stopped trial ends there, unless it is finished after all"
        yield Finding("epochs", reached, row.stopped_at, rule, trial=number)
    if row.state == "dropped":
        yield from _dropped(row, lag)
    elif row.dropped_at is not None or row.state_before is not None:
        told = row.dropped_at if row.dropped_at is not None else row.state_before
        yield Finding("dropped_at", told, None, "of a dropped trial only", trial=number)
    ended = row.state_before if row.state == "dropped" else row.state
    still = row.last is not None and plateau(spec.scheduler, row, epoch=reached, goal=goal)
    if ended == "complete" and not (row.whole or still):
        yield Finding("state", ended, "pruned", f"it has {reached} of {planned} epochs", trial=number)
    if ended == "pruned" and row.whole and not row.finishing:
        yield Finding("state", ended, "complete", f"it has all its {planned} epochs", trial=number)
    if row.state == "pruned" and still and row.stop_reason == f"{spec.scheduler.name} at epoch {reached}":
        yield Finding("state", ended, "complete", "it stood still (scheduler.patience)", trial=number)
    if row.state in ("complete", "pruned"):
        yield from _reason(spec, row)
    if row.state == "failed" and not row.stop_reason:
        yield Finding("stop_reason", row.stop_reason, None, "why it failed", trial=number)
    if row.failure_kind is not None and row.state != "failed":
        yield Finding("failure_kind", row.failure_kind, None, "of a failed trial only", trial=number)


def _dropped(row: TrialRow, lag: int) -> Iterator[Finding]:
    at = row.dropped_at
    if not (row.stop_reason or "").startswith("dropped"):
        yield Finding("stop_reason", row.stop_reason, "dropped", "why it is out", trial=row.number)
    if at is None or at <= row.number:
        yield Finding("dropped_at", at, row.number + 1, "it was there when it was dropped", trial=row.number)
    elif row.state_before is None and at > row.number + lag + 1:
        rule = "it had not ended, so no trial that knows it had started"
        yield Finding("dropped_at", at, row.number + lag + 1, rule, trial=row.number)


def _reason(spec: StudyConfig, row: TrialRow) -> Iterator[Finding]:
    """The sentence about a trial that was not dropped and has not failed."""
    name, at, reason = spec.scheduler.name, row.stopped_at, row.stop_reason or ""
    stopped = f"{name} at epoch {at}"
    if row.state == "complete":
        allowed = [f"no improvement up to epoch {at}"] if at is not None and not row.finishing else [""]
        allowed += [f"{stopped}, then trained to its end"] if row.finishing else []
        if reason not in allowed:
            yield Finding("stop_reason", row.stop_reason, allowed[-1] or None, "how it ended", trial=row.number)
    elif row.finishing:
        if reason != stopped and not reason.startswith(f"{stopped}; its end failed: "):
            yield Finding("stop_reason", row.stop_reason, stopped, "how it ended", trial=row.number)
    elif reason != stopped and not reason.startswith("study: "):
        derived = stopped if at is not None else "study: ..."
        yield Finding("stop_reason", row.stop_reason, derived, "the rule, or the study's end", trial=row.number)


def finished(spec: StudyConfig, goal: Goal, rows: Mapping[int, TrialRow], *, settled: bool) -> Iterator[Finding]:
    """Those that were trained to their end were among the best stopped ones at some time; if the study is `settled`,
    no such one is left."""
    count = spec.scheduler.finish
    for row in rows.values():
        if row.finishing and not any(row.number in _best(rows, goal, count, now) for now in _times(row, rows)):
            rule = f"among the {count} best that the rule stopped (scheduler.finish)"
            yield Finding("finishing", True, False, rule, trial=row.number)
    if settled and count:
        left = [number for number in _best(rows, goal, count, len(rows)) if not rows[number].finishing]
        if left:
            yield Finding("finishing", False, True, f"among the {count} best that the rule stopped", trial=left[0])


def _times(row: TrialRow, rows: Mapping[int, TrialRow]) -> Sequence[int]:
    """Numbers of trials that there may have been when it was taken up again."""
    return range(row.number + 1, len(rows) + 1)


def _best(rows: Mapping[int, TrialRow], goal: Goal, count: int, now: int) -> set[int]:
    """Those to be finished when there were `now` trials; who was dropped then may have been there, or not."""
    there = [row for number, row in rows.items() if number < now]
    either = ([as_known(row, number) for row in there] for number in (now - 1, now))
    found: set[int] = set()
    for some in either:
        found |= {row.number for row in to_finish(some, goal, count)}
    return found
