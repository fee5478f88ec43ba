"""The rule of knowledge: trial n knows the outcomes of trials 0 ... n-1-lag, and nothing else.

Trial n starts when those have ended. Its parameters follow from them (those in between are pending: their parameters
count, their results do not), and it is judged at every rung against them alone. So what a study proposes and stops is
a function of its file and of results, never of who reports first; `agft audit` derives it again from the stored rows.

Where users and accidents come in:

failed     a trial that failed is known as failed, with the epochs that it had.
dropped    trials with numbers below `dropped_at` know it as it had ended, those from there on not at all.
repeated   a repetition takes the next number, is known like any other, and repeats parameters that nobody proposed.
extended   more numbers; what a trial knows does not depend on how many there will be.
finished   (`scheduler.finish`) a stopped trial that is trained to its end stays known as it was when it was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from study.store.rows import TrialRow


def auto_lag(fitting: int) -> int:
    """`lag: auto`, where so many trials fit at once. With two less, every slot would wait for the oldest trial."""
    return fitting + 1


def known(rows: Mapping[int, TrialRow], number: int, lag: int) -> list[TrialRow]:
    """What trial `number` knows: the rows that it may start after, as it sees them, dropped ones left out."""
    seen = (as_known(rows[other], number) for other in range(number - lag) if other in rows)
    return [row for row in seen if row.state != "dropped"]


def wanted(rows: Mapping[int, TrialRow], budget: int, line: Sequence[int]) -> int:
    """How many trials there are to be: the `budget`, those that take a dropped one's place, and repetitions.

    `line`: every trial that was granted to run again, in order. A repetition that is dropped is not replaced.
    """
    return budget + sum(row.state == "dropped" and row.rerun_of is None for row in rows.values()) + len(line)


def repeats(rows: Mapping[int, TrialRow], line: Sequence[int]) -> int | None:
    """Which trial the one after `rows` runs again; None if it is no repetition."""
    done = sum(row.rerun_of is not None for row in rows.values())
    return line[done] if done < len(line) else None


def awaited(rows: Mapping[int, TrialRow], number: int, lag: int) -> int | None:
    """The first trial that has to end before trial `number` may start; None if it may.

    One that was stopped, and is being trained to its end, is known already.
    """
    open_ones = (other for other in range(number - lag) if not (rows[other].finished or rows[other].finishing))
    return next(open_ones, None)


def as_known(row: TrialRow, number: int) -> TrialRow:
    """A trial that has ended, as trial `number` knows it."""
    if row.state == "dropped" and not is_gone(row, number) and row.state_before is not None:
        row = replace(row, state=row.state_before)
    return as_stopped(row)


def is_gone(row: TrialRow, number: int) -> bool:
    """Whether a trial was dropped before trial `number` was proposed."""
    return row.state == "dropped" and (row.dropped_at is None or number >= row.dropped_at)


def as_stopped(row: TrialRow) -> TrialRow:
    """A trial that went on after it had been stopped, as it was then; any other as it is."""
    at = row.stopped_at
    if not row.finishing or at is None:
        return row
    epochs = tuple(record for record in row.epochs if record.epoch <= at)
    return replace(row, state="dropped" if row.state == "dropped" else "pruned", epochs=epochs)
