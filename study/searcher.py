"""Our Tune searcher on Optuna's ask/tell. The database is the truth; every call can be repeated.

Ray's own OptunaSearch cannot be restored after a badly timed crash with RDB storage, repeats its warm starts, and
stores early-stopped trials as complete. Here a trial's Optuna number is its name everywhere, unfinished trials of an
earlier driver go first.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from ray.tune.search import Searcher

from study import samplers
from study.config import StudyConfig
from study.store import StudyStore, TrialRow

__all__ = ["OptunaBook", "StudySearcher"]

log = logging.getLogger("agft")
STATES = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}


class OptunaBook:
    """The Optuna study of a study: proposals in, outcomes back. `at_least`: the goal's floors as numbers."""

    def __init__(self, store: StudyStore, spec: StudyConfig, at_least: Mapping[Any, float]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.spec, self.store, self.at_least = spec, store, at_least
        self.dimensions = spec.dimensions()
        arguments = {"connect_args": {"timeout": 60}} if store.engine.dialect.name == "sqlite" else {}
        self.storage = optuna.storages.RDBStorage(store.url, engine_kwargs=arguments)
        self.study = optuna.create_study(
            study_name=f"agft/{spec.name}", storage=self.storage, direction="maximize", load_if_exists=True
        )

    def enqueue_warm_starts(self) -> None:
        """Put the warm starts first in line, once in a study's life."""
        samplers.enqueue_warm_starts(self.study, self.spec, self.dimensions)

    def reconcile(self) -> list[int]:
        """Bring Optuna in line with our trials; numbers of the trials that are to be continued, oldest first.

        A crash can fall between two writes: ours says finished and Optuna's says running (told again here), or Optuna
        has a trial that we never started (continued: its parameters, where drawn, are kept).
        """
        ours = {row.number: row for row in self.store.trials()}
        unfinished = []
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            row = ours.get(trial.number)
            if row is not None and row.finished:
                self.tell(row)
            else:
                unfinished.append(trial.number)
        return unfinished

    def propose(self) -> tuple[int, dict[str, Any]]:
        """A new trial: its number and parameters by dotted path."""
        return samplers.propose(self.study, self.spec, self.dimensions)

    def parameters(self, number: int) -> dict[str, Any]:
        """Parameters of an existing trial; those that a crash left undrawn are drawn now."""
        frozen = self._frozen(number)
        self.study.sampler = samplers.sampler_for(self.spec, number)
        return samplers.draw(optuna.Trial(self.study, frozen._trial_id), self.dimensions)

    def _frozen(self, number: int) -> FrozenTrial:
        return next(trial for trial in self.study.get_trials(deepcopy=False) if trial.number == number)

    def observe(self, number: int, epoch: int, value: float) -> None:
        """An intermediate value."""
        frozen = self._frozen(number)
        if frozen.state.is_finished():
            return
        if frozen.intermediate_values.get(epoch) != value:
            self.storage.set_trial_intermediate_value(frozen._trial_id, epoch, value)

    def tell(self, row: TrialRow) -> None:
        """The final outcome; telling it again changes nothing."""
        frozen = self._frozen(row.number)
        if frozen.state.is_finished():
            return
        for key, text in (("agft.stop_reason", row.stop_reason), ("agft.failure_kind", row.failure_kind)):
            if text:
                self.storage.set_trial_user_attr(frozen._trial_id, key, text)
        if row.last and not any(key.startswith("constraints") for key in frozen.system_attrs):
            trial = optuna.Trial(self.study, frozen._trial_id)
            for name, floor in self.at_least.items():
                trial.set_constraint(name, floor - float(row.last[f"best_{name}"]))
        metric = f"best_{self.spec.goal.metric}"
        value = float(row.last[metric]) if row.last and row.state == "complete" else None
        self.study.tell(row.number, values=value, state=STATES[row.state], skip_if_finished=True)


class StudySearcher(Searcher):
    """What Tune talks to. `begin(number, params)` stores the start, `end(number, tune_result, error)` the outcome.

    It limits concurrency itself (`slots` free trials at once, `admit()` asks the cluster), so that Tune never builds a
    trial that would only wait for resources.
    """

    def __init__(
        self,
        book: OptunaBook,
        *,
        budget: int,
        slots: int,
        admit: Callable[[int], bool],
        begin: Callable[[int, dict[str, Any]], dict[str, Any]],
        end: Callable[[int, bool], None],
        closing: Callable[[], bool],
    ) -> None:
        super().__init__()
        self.book, self.budget, self.slots = book, budget, slots
        self.admit, self.begin, self.end, self.closing = admit, begin, end, closing
        self.waiting = deque(book.reconcile())
        self.numbers: dict[str, int] = {}  # Tune's trial id -> our number, for the trials of this driver

    @property
    def started(self) -> int:
        """Trials that exist, waiting warm starts not counted."""
        return len(self.book.study.get_trials(deepcopy=False)) - len(
            self.book.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        )

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """A trial's settings; None while there is no free slot; FINISHED when the budget is used up."""
        if self.closing():
            return Searcher.FINISHED
        if not self.waiting and self.started >= self.budget:
            return Searcher.FINISHED
        upcoming = self.waiting[0] if self.waiting else self.started
        if len(self.numbers) >= self.slots or not self.admit(upcoming):
            return None
        if self.waiting:
            number = self.waiting.popleft()
            params = self.book.parameters(number)
        else:
            number, params = self.book.propose()
        self.numbers[trial_id] = number
        return self.begin(number, params)

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
