"""A driver's searcher and book-keeping on a real store, its trials "run" by a test's own hand. Knows no Ray."""

from __future__ import annotations

import itertools
from typing import Any

import optuna

from infra.tracking.runs import Tracker
from study.driver.closing import Closing
from study.driver.trials import Trials, begin_search
from study.driver.tune import StudySearcher
from study.spec.config import StudyConfig
from study.store.lease import owner_identity
from study.store.requests import answer, pending
from study.store.store import StudyStore
from tests.support.epochs import epoch_record
from trainers.schema.records import Ending, EpochRecord, Measurement, Report, Weights

NOWHERE = "http://127.0.0.1:9"  # MLflow is away
BASELINE = Measurement(clean_accuracy=0.9, robust_accuracy=0.1, datasets={})


def measured(url: str, spec: StudyConfig) -> StudyStore:
    """A new study whose unmodified model counts as measured."""
    store = StudyStore(url, spec.name)
    store.create(spec)
    token = store.acquire(owner_identity())
    store.set_study(token, baseline=BASELINE)
    store.release(token, "paused")
    return store


def in_optuna(store: StudyStore) -> list[optuna.trial.FrozenTrial]:
    """What dashboards see."""
    return optuna.load_study(study_name=store.load().optuna_name, storage=store.url).get_trials()


class Hand:
    """The next driver of a study. `lag`: of one that has none yet, in place of `auto`'s `slots` + 1."""

    def __init__(self, store: StudyStore, *, slots: int = 9, owner: str | None = None, seconds: float = 30.0) -> None:
        self.store = store
        self.token = store.acquire(owner or owner_identity(), seconds=seconds)
        begin_search(store, self.token, slots)
        nobody = Tracker(NOWHERE, "test")
        nobody.close(0.0)  # else its thread asks and logs for as long as the tests run
        self.trials = Trials(store, self.token, nobody, lambda line: None)
        self.trials.open()
        self.names = map("tune-{}".format, itertools.count())
        self.searcher = StudySearcher(
            unfinished=self.trials.unfinished(), upcoming=lambda: self.trials.upcoming(store.load()),
            ended=self.trials.ended, slots=slots, admit=lambda _: True, begin=self._begin, end=self._end,
            closing=lambda: False,
        )  # fmt: skip
        self.ending = Ending(outcome="finished")

    def _begin(self, number: int) -> dict[str, Any]:
        row = self.trials.begin(number)
        return {"number": number, **row.params}

    def _end(self, number: int, error: bool) -> None:
        self.trials.end(number, self.ending, Closing(), device_seconds=1.0)

    def start(self) -> Any:
        """The searcher's word: a trial's number and parameters, None or FINISHED."""
        return self.searcher.suggest(next(self.names))

    def report(self, number: int, *records: EpochRecord, **files: Weights | None) -> None:
        report = Report(epoch=records[-1].epoch, records=records, **files)
        self.trials.report(number, report, device_seconds=1.0)

    def end(self, number: int, ending: Ending | None = None) -> None:
        """Its processes have left; as it is, for good and whole."""
        self.ending = ending or Ending(outcome="finished")
        self.searcher.on_trial_complete(next(k for k, v in self.searcher.numbers.items() if v == number))

    def finish(self, number: int, robust: float) -> None:
        """One epoch, and its end."""
        self.report(number, epoch_record(1, robust))
        self.end(number)

    def obey(self) -> list[str]:
        """What users ask, as a driver does it."""
        said = []
        for request in pending(self.store):
            said.append(self.trials.obey(request))
            answer(self.store, self.token, request["id"], said[-1])
        return said

    def run_all(self) -> list[Any]:
        """Every trial that is left, one after the other, each a little better."""
        self.obey()
        seen = []
        while isinstance(settings := self.start(), dict):
            self.finish(settings["number"], 0.1 * (settings["number"] + 1))
            seen.append(settings)
        return seen

    def leave(self, state: str = "finished") -> None:
        self.store.release(self.token, state)
