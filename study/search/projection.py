"""The study in Optuna's own tables, for dashboards: a projection of the store, safe to repeat as a whole.

Nothing is read back from it. Trials are put there when they begin, and told their outcome when they end; what a crash
cut off is made up by the next driver. Optuna cannot take a finished trial's value away, so a dropped trial has the
whole built anew.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import optuna
from optuna.trial import TrialState

from study.errors import UserError
from study.search.proposals import Proposer
from study.search.samplers import directions
from study.spec.config import StudyConfig
from study.store.database import impatience, leave_replicas, optunas_revision, patient
from study.store.rows import TrialRow
from study.store.store import StudyStore

OWN_DATABASE = "give AGFT_STUDY_DB a database of its own"


class Projection:
    """One study's. `proposer` knows how Optuna has a trial."""

    def __init__(self, store: StudyStore, proposer: Proposer) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.store, self.proposer = store, proposer
        self.name = store.load().optuna_name
        self.storage = optuna_storage(store)
        self.study = self._open()

    def _open(self) -> optuna.Study:
        _check_directions(self.storage, self.name, self.proposer.spec)
        return optuna.create_study(
            study_name=self.name, storage=self.storage, directions=directions(self.proposer.spec), load_if_exists=True
        )

    @patient
    def follow(self, rows: Iterable[TrialRow]) -> None:
        """Bring Optuna in line with the rows, which are all from number 0 on, or some that it has and the next."""
        have = {trial.number: trial for trial in self.study.get_trials(deepcopy=False)}
        for row in sorted(rows, key=lambda row: row.number):
            if row.number not in have:
                self.study.add_trial(self.proposer.frozen(row))
            elif row.finished and not have[row.number].state.is_finished():
                self._tell(row, have[row.number]._trial_id)

    def _tell(self, row: TrialRow, trial_id: int) -> None:
        frozen = self.proposer.frozen(row)
        for epoch, value in frozen.intermediate_values.items():
            self.storage.set_trial_intermediate_value(trial_id, epoch, value)
        for key, text in frozen.user_attrs.items():
            self.storage.set_trial_user_attr(trial_id, key, text)
        for key, value in frozen.system_attrs.items():
            self.storage.set_trial_system_attr(trial_id, key, value)
        self.storage.set_trial_state_values(trial_id, frozen.state, frozen.values)

    @patient
    def rebuild(self, rows: Iterable[TrialRow]) -> None:
        """Write it anew: a trial that was dropped, or finished after all, is there as it is now."""
        delete_projection(self.store)
        self.study = self._open()
        for row in sorted(rows, key=lambda row: row.number):
            self.study.add_trial(self.proposer.frozen(row))

    @patient
    def catch_up(self, rows: Collection[TrialRow]) -> None:
        """Follow all rows, or write it anew where a trial is there with an outcome that it does not have: one was
        dropped meanwhile, or a rebuilding was cut off."""
        have = {trial.number: trial.state for trial in self.study.get_trials(deepcopy=False)}
        ended = [row for row in rows if have.get(row.number, TrialState.RUNNING).is_finished()]
        if all(have[row.number] == self.proposer.frozen(row).state for row in ended):
            self.follow(rows)
        else:
            self.rebuild(rows)


def check_projection(store: StudyStore) -> None:
    """`UserError` where Optuna's tables, or the study in them, are not ours: said before anything is started."""
    study = store.load()
    _check_directions(optuna_storage(store), study.optuna_name, study.spec)


def _check_directions(storage: optuna.storages.BaseStorage, name: str, spec: StudyConfig) -> None:
    if name not in optuna.get_all_study_names(storage):
        return
    there = [direction.name.lower() for direction in optuna.load_study(study_name=name, storage=storage).directions]
    if there != directions(spec):
        raise UserError(
            f"the study database has another study {name!r} in Optuna's tables, to {', '.join(there)}: choose another "
            f"name (--name), or {OWN_DATABASE}"
        )


def _check_revision(store: StudyStore) -> None:
    with store.engine.connect() as connection:
        there, problem = optunas_revision(connection)
    if problem == "old":
        raise UserError(f"Optuna's tables in the study database are old ({there}): run `optuna storage upgrade`, once "
                        f"drivers of older versions have ended, or {OWN_DATABASE}")  # fmt: skip
    if problem:
        raise UserError(f"the table alembic_version of the study database ({there}) is of another program, such as "
                        f"MLflow, or of another version of Optuna: {OWN_DATABASE}")  # fmt: skip


def optuna_storage(store: StudyStore) -> optuna.storages.BaseStorage:
    """Optuna's tables, in our database; finished trials are read once and kept in memory.

    `UserError` where they are of another version, or their place is taken.
    """
    _check_revision(store)
    if store.engine.dialect.name == "sqlite":
        arguments: dict[str, Any] = {"connect_args": {"timeout": 60}}
    else:
        arguments = {"pool_pre_ping": True, "connect_args": impatience(store.engine.url)}
    storage = optuna.storages.RDBStorage(store.url, engine_kwargs=arguments)
    leave_replicas(storage.engine)
    return optuna.storages.get_storage(storage)


def delete_projection(store: StudyStore) -> None:
    """Delete what Optuna has of the study; nothing happens if that is nothing."""
    storage, name = optuna_storage(store), store.load().optuna_name
    if name in optuna.get_all_study_names(storage):
        optuna.delete_study(study_name=name, storage=storage)
