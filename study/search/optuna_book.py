"""Our Tune searcher on Optuna's ask/tell. The database is the truth; every call can be repeated.

Ray's own OptunaSearch cannot be restored after a badly timed crash with RDB storage, repeats its warm starts, and
stores early-stopped trials as complete. Here a trial's Optuna number is its name everywhere, unfinished trials of an
earlier driver go first.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from infra.failpoint import reach
from study.results.ranking import score
from study.search import prior, samplers
from study.spec.config import StudyConfig
from study.store.database import patient
from study.store.rows import TrialRow
from study.store.store import StudyStore

log = logging.getLogger("agft")
STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "dropped": TrialState.FAIL,
}


class OptunaBook:
    """The Optuna study of a study: proposals in, outcomes back. `at_least`: the goal's floors as numbers.

    It is a projection of the store: what it lacks is put in again from there. A trial that is dropped cannot be taken
    out of an Optuna study, so a new generation is built without its values, and the old one deleted.
    """

    def __init__(self, store: StudyStore, spec: StudyConfig, at_least: Mapping[Any, float]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.spec, self.store, self.at_least = spec, store, at_least
        self.dimensions = spec.dimensions()
        self.storage = optuna_storage(store)
        self.study = self._study(store.load().optuna_name)
        self.ids: dict[int, int] = {}  # number -> Optuna's own id, of the trials that this driver met

    def _study(self, name: str) -> optuna.Study:
        directions = samplers.directions(self.spec)
        return optuna.create_study(study_name=name, storage=self.storage, directions=directions, load_if_exists=True)

    @patient
    def enqueue_warm_starts(self) -> None:
        """Put the warm starts first in line, once in a study's life, then the best trials of prior studies."""
        if not self.study.user_attrs.get("agft.warm_starts"):
            earlier = prior.resolve(self.spec, prior.earlier_studies(self.store.url, self.spec))
            samplers.enqueue_warm_starts(self.study, self.spec, self.dimensions, earlier.starts)

    @patient
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

    @patient
    def upcoming(self) -> tuple[int, int, int]:
        """The number that `propose` would give, how many trials exist, and how many repeat another.

        Warm starts that wait do not exist yet; repetitions do from the moment that they were asked for.
        """
        trials = self.study.get_trials(deepcopy=False)
        waiting = [trial.number for trial in trials if trial.state == TrialState.WAITING]
        again = sum("agft.rerun_of" in t.user_attrs and "agft.dropped" not in t.user_attrs for t in trials)
        return (min(waiting) if waiting else len(trials)), len(trials) - len(waiting), again

    @patient
    def parameters(self, number: int) -> dict[str, Any]:
        """Parameters of an existing trial; those that a crash left undrawn are drawn now."""
        return samplers.redraw(self.study, self.spec, self.dimensions, self._frozen(number))

    @patient
    def enqueue_again(self, number: int, request: int) -> None:
        """Put the parameters of a trial in line once more; asking twice for one request changes nothing."""
        for trial in self.study.get_trials(deepcopy=False):
            if trial.user_attrs.get("agft.request") == request:
                return
        attributes = {"agft.request": request, "agft.rerun_of": number}
        self.study.enqueue_trial(dict(self._frozen(number).params), user_attrs=attributes)

    @patient
    def rerun_of(self, number: int) -> int | None:
        """The trial that this one repeats, if it does."""
        found = self._frozen(number).user_attrs.get("agft.rerun_of")
        return None if found is None else int(found)

    @patient
    def ended(self, number: int) -> bool:
        """Whether Optuna has the trial's outcome."""
        return self._frozen(number).state.is_finished()

    def _frozen(self, number: int) -> FrozenTrial:
        if number not in self.ids:
            self.ids |= {trial.number: trial._trial_id for trial in self.study.get_trials(deepcopy=False)}
        return self.storage.get_trial(self.ids[number])

    @patient
    def observe(self, number: int, epoch: int, value: float) -> None:
        """An intermediate value; with several metrics Optuna has none."""
        frozen = self._frozen(number)
        if frozen.state.is_finished() or len(self.study.directions) > 1:
            return
        if frozen.intermediate_values.get(epoch) != value:
            self.storage.set_trial_intermediate_value(frozen._trial_id, epoch, value)

    @patient
    def tell(self, row: TrialRow) -> None:
        """The final outcome; telling it again changes nothing."""
        frozen = self._frozen(row.number)
        if frozen.state.is_finished():
            return
        for record in row.epochs:  # a crash may have come between the store's write and Optuna's
            self.observe(row.number, record.epoch, score(record, self.spec.goal.at(self.at_least)))
        for key, text in (("agft.stop_reason", row.stop_reason), ("agft.failure_kind", row.failure_kind)):
            if text:
                self.storage.set_trial_user_attr(frozen._trial_id, key, text)
        if row.last and not any(key.startswith("constraints") for key in frozen.system_attrs):
            trial = optuna.Trial(self.study, frozen._trial_id)
            for name, floor in self.at_least.items():
                trial.set_constraint(name, floor - row.last.at_best(name))
        values = samplers.values(self.spec, row.last) if row.last and row.state == "complete" else None
        self.study.tell(row.number, values=values, state=STATES[row.state], skip_if_finished=True)

    @patient
    def mirrors(self) -> bool:
        """Whether Optuna has every trial of ours, dropped ones as such: not so after a restore, or half a drop."""
        known = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        return all(
            row.number in known and (row.state != "dropped" or "agft.dropped" in known[row.number].user_attrs)
            for row in self.store.trials()
        )

    @patient
    def tidy(self) -> None:
        """Delete other generations than that of now: a driver may have been killed between two of them."""
        delete_optuna_studies(self.store, keep=self.study.study_name)

    @patient
    def rebuild(self, token: int) -> None:
        """A new generation of the Optuna study from the store: dropped trials without values, the others as they were.

        Nothing refers to the new generation before it is whole, so a crash at any point costs nothing.
        """
        study = self.store.load()
        before = {trial.number: trial for trial in self.study.get_trials(deepcopy=True)}
        rows = {row.number: row for row in self.store.trials()}
        name = replace(study, generation=study.generation + 1).optuna_name
        self.tidy()  # a driver may have been killed half-way
        fresh = self._study(name)
        for key, value in self.study.user_attrs.items():
            fresh.set_user_attr(key, value)
        for number in range(max([*before, *rows], default=-1) + 1):
            fresh.add_trial(self._rebuilt(before.get(number), rows.get(number)))
        if self.spec.sampler.row.exhaustive:
            samplers.enqueue_dropped_points(fresh)
        reach("generation.built")
        self.store.set_study(token, generation=study.generation + 1)
        reach("generation.stored")
        self.study, self.ids = self._study(name), {}
        for row in rows.values():
            if row.finished:
                self.tell(row)
        self.tidy()

    def _rebuilt(self, trial: FrozenTrial | None, row: TrialRow | None) -> FrozenTrial:
        """One trial as the new generation begins with it; what the store knows to be finished is told afterwards."""
        dropped = row is not None and row.state == "dropped"
        if trial is None:
            params = row.params if row is not None else {}
            kept = {d.path: d.distribution for d in self.dimensions if d.path in params}
            attributes = {} if row is None or row.rerun_of is None else {"agft.rerun_of": row.rerun_of}
            return optuna.trial.create_trial(
                state=TrialState.RUNNING if row is not None and not dropped else TrialState.FAIL,
                params={path: params[path] for path in kept}, distributions=kept,
                user_attrs=attributes | ({"agft.dropped": True} if dropped else {}),
            )  # fmt: skip
        if dropped:
            return optuna.trial.create_trial(
                state=TrialState.FAIL, params=trial.params, distributions=trial.distributions,
                user_attrs={**trial.user_attrs, "agft.dropped": True},
            )  # fmt: skip
        return trial


def optuna_storage(store: StudyStore) -> optuna.storages.BaseStorage:
    """Optuna's tables, in our database; finished trials are read once and kept in memory."""
    if store.engine.dialect.name == "sqlite":
        arguments: dict[str, Any] = {"connect_args": {"timeout": 60}}
    else:
        arguments = {"pool_pre_ping": True}
    return optuna.storages.get_storage(optuna.storages.RDBStorage(store.url, engine_kwargs=arguments))


def delete_optuna_studies(store: StudyStore, *, keep: str | None = None) -> None:
    """Delete every generation of the study's Optuna study but `keep`."""
    storage = optuna_storage(store)
    own = re.compile(rf"agft/{re.escape(store.name)}(/\d+)?")
    for name in optuna.get_all_study_names(storage):
        if own.fullmatch(name) and name != keep:
            optuna.delete_study(study_name=name, storage=storage)
