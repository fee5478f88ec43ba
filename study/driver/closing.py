"""When a driver starts no more trials, and what that makes of trials and study: pure functions over rows and words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from study.results.status import ALL_DONE
from study.search.stopping import plateau
from study.spec.config import SchedulerConfig
from study.store.rows import TrialRow
from trainers.schema.records import Ending
from trainers.schema.training import Goal

STATES = {"finished": "complete", "stopped": "pruned"}  # of a trial, by its processes' word; any other has failed


@dataclass(frozen=True)
class Closing:
    """Why no new trials start. `word`: pause, stop, budget, fail, lost, '' while they do; `since`: monotonic time."""

    word: str = ""
    reason: str = ""
    since: float = 0.0

    def __bool__(self) -> bool:
        return bool(self.word)

    @property
    def told(self) -> str:
        """What running trials are told."""
        return "stop" if self.word in ("stop", "budget") else "pause"

    @property
    def leaving(self) -> str:
        """How running trials do what they are told, as a sentence goes on."""
        return "end at their next report" if self.told == "stop" else "keep a state and leave"

    @property
    def of_trials(self) -> str:
        """Why trials that it cut off have ended."""
        return f"study: {self.reason if self.word == 'budget' else self.word or 'stopped'}"


def reason_to_close(*, lost: bool, interrupted: bool, desired: str, over: str, away: str = "") -> tuple[str, str]:
    """The word and the sentence; two empty ones while trials may start. `over`: which limit is reached, if any; `away`:
    which service has been away for too long."""
    if lost:
        return "lost", "another driver has taken over this study, or may have: the database has been away for too long"
    if interrupted:
        return "pause", "interrupted"
    if desired in ("pause", "stop"):
        return desired, f"asked to {desired}"
    if away:
        return "pause", away
    return ("budget", over) if over else ("", "")


def ended(
    row: TrialRow, ending: Ending, scheduler: SchedulerConfig, goal: Goal, closing: Closing
) -> tuple[str, str | None]:
    """The state of a trial whose processes have left for good, and why it is in it."""
    state = STATES.get(ending.outcome, "failed")
    if state == "pruned" and row.last and plateau(scheduler, row, epoch=row.last.epoch, goal=goal):
        state = "complete"  # it stood still: more epochs would not change what it is judged by
    stops = [epoch for epoch, decision in row.verdicts.items() if decision == "stop"]
    if row.finishing:
        return _finished(state, f"{scheduler.name} at epoch {row.stopped_at}", ending)
    if state == "failed":
        return state, ending.message or "the trial's process ended without a word"
    if state == "complete":
        return state, f"no improvement up to epoch {max(stops)}" if stops else None
    return state, f"{scheduler.name} at epoch {max(stops)}" if stops else closing.of_trials


def _finished(state: str, stopped: str, ending: Ending) -> tuple[str, str]:
    """Of a stopped trial that was to be trained to its end: where that fails, it is what it was."""
    if state == "complete":
        return state, f"{stopped}, then trained to its end"
    return "pruned", stopped if state == "pruned" else f"{stopped}; its end failed: {ending.message or 'no word'}"


def final_state(closing: Closing, trials: Sequence[TrialRow], still: str = "") -> tuple[str, str]:
    """The study's state at the end of a driver that still holds the lease, and why it is in it. `still`: see
    `study.search.stopping.stands_still`."""
    if closing.word == "pause":
        return "paused", closing.reason
    if closing.word == "stop":
        return "stopped", closing.reason
    if any(not row.finished for row in trials):
        return "paused", "some trials are unfinished"
    return "finished", closing.reason or still or ALL_DONE
