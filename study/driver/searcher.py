"""Ray Tune's searcher: which trial starts next, and when it may."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any

from ray.tune.search import Searcher

from study.driver.trials import Upcoming


class StudySearcher(Searcher):
    """What Tune talks to. `begin(number)` stores the start of a trial, `end(number, error)` its outcome; true is
    a trial that was interrupted and goes on.

    `unfinished` trials of an earlier driver go first; then come those that `upcoming()` names, each when it may start.
    It limits concurrency itself (`slots` free trials at once, `admit()` asks the cluster), so that Tune never builds a
    trial that would only wait for resources.
    """

    def __init__(
        self,
        *,
        unfinished: Iterable[int],
        upcoming: Callable[[], Upcoming | None],
        ended: Callable[[int], bool],
        slots: int,
        admit: Callable[[int], bool],
        begin: Callable[[int], dict[str, Any]],
        end: Callable[[int, bool], bool],
        closing: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.waiting = deque(sorted(unfinished))
        self.upcoming, self.ended, self.slots = upcoming, ended, slots
        self.admit, self.begin, self.end, self.closing = admit, begin, end, closing
        self.numbers: dict[str, int] = {}  # Tune's trial id -> our number, for the trials of this driver

    def finished(self) -> bool:
        """Whether no trial is left to start."""
        return self._next() is None

    def _next(self) -> Upcoming | None:
        while self.waiting and self.ended(self.waiting[0]):  # it may have been dropped meanwhile
            self.waiting.popleft()
        return Upcoming(self.waiting[0]) if self.waiting else self.upcoming()

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial's settings; None while it has to wait; FINISHED when there is none any more."""
        if self.closing():
            return Searcher.FINISHED
        if len(self.numbers) >= self.slots:
            return None
        coming = self._next()
        if coming is None:
            return Searcher.FINISHED
        if coming.awaited is not None or not self.admit(coming.number):
            return None
        if self.waiting:
            self.waiting.popleft()
        self.numbers[trial_id] = coming.number
        return self.begin(coming.number)

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune is done with a trial, one way or the other."""
        number = self.numbers.pop(trial_id, None)
        if number is not None and self.end(number, error):
            self.waiting.append(number)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Yes, this searcher limits concurrency itself."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: Tune's directory is scratch, the database is the truth."""

    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None:
        """Nothing, as `save`."""

    def restore(self, checkpoint_path: str) -> None:
        """Never used: every driver builds a fresh searcher from the store."""
        raise NotImplementedError("a study is continued from its store, not from Tune's files")

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune pickles its searcher into scratch; no database address or handle goes there
