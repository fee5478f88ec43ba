"""Ray Tune's searcher over the study's own book of proposals."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from study.search.optuna_book import OptunaBook
from study.store.database import away


class StudySearcher(Searcher):
    """What Tune talks to. `begin(number, params)` stores the start, `end(number, tune_result, error)` the outcome.

    `budget()` trials are started, not counting `dropped()` ones and repetitions; all may grow while the study runs.
    It limits concurrency itself (`slots` free trials at once, `admit()` asks the cluster), so that Tune never builds a
    trial that would only wait for resources.
    """

    def __init__(
        self,
        book: OptunaBook,
        *,
        budget: Callable[[], int],
        dropped: Callable[[], int],
        slots: int,
        admit: Callable[[int], bool],
        begin: Callable[[int, dict[str, Any]], dict[str, Any]],
        end: Callable[[int, bool], None],
        closing: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.book, self.budget, self.dropped, self.slots = book, budget, dropped, slots
        self.admit, self.begin, self.end, self.closing = admit, begin, end, closing
        self.waiting = deque(book.reconcile())
        self.numbers: dict[str, int] = {}  # Tune's trial id -> our number, for the trials of this driver

    def finished(self) -> bool:
        """Whether no trial is left to start."""
        self._forget_the_ended()
        _, existing, again = self.book.upcoming()
        return not self.waiting and existing - self.dropped() >= self.budget() + again

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial's settings; None while there is no free slot; FINISHED when the budget is used up."""
        if self.closing():
            return Searcher.FINISHED
        if len(self.numbers) >= self.slots:
            return None
        self._forget_the_ended()
        upcoming, existing, again = self.book.upcoming()
        if self.waiting:
            upcoming = self.waiting[0]
        elif existing - self.dropped() >= self.budget() + again:
            return Searcher.FINISHED
        if not self.admit(upcoming):
            return None
        if self.waiting:
            number = self.waiting.popleft()
            params = self.book.parameters(number)
        else:
            number, params = self._propose()
        self.numbers[trial_id] = number
        return self.begin(number, params)

    def _forget_the_ended(self) -> None:
        """A trial that waits to go on may be dropped meanwhile."""
        while self.waiting and self.book.ended(self.waiting[0]):
            self.waiting.popleft()

    def _propose(self) -> tuple[int, dict[str, Any]]:
        """A new trial; if the database goes away meanwhile, the one that Optuna may have begun, with its number."""
        try:
            return self.book.propose()
        except Exception as error:
            if not away(error):
                raise
        begun = [number for number in self.book.reconcile() if number not in self.numbers.values()]
        if begun:
            return begun[0], self.book.parameters(begun[0])
        return self._propose()

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tune is done with a trial, one way or the other."""
        number = self.numbers.pop(trial_id, None)
        if number is not None:
            self.end(number, error)

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
