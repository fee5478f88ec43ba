"""What is proposed for a trial: a function of the specification, the given trials and what the trial knows.

Every proposal is made in an Optuna study in memory that is built for it: what is known as it ended, what is pending
with its parameters alone. Nothing is kept between two proposals but what a sampler writes into its trial (`memory`).
"""

from __future__ import annotations

import contextlib
import copy
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from study.results.ranking import score
from study.search import samplers
from study.search.knowledge import is_gone, known
from study.spec.config import StudyConfig
from study.spec.dimension import Dimension, apply_params
from study.spec.starts import Observation, Start, given_trials
from study.store.rows import Proposal, StudyRow, TrialRow
from trainers.schema.training import Goal
from trainers.trial_config import TrialConfig

OPTUNA_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "dropped": TrialState.FAIL,
    "running": TrialState.RUNNING,
}


REPEATED = ("fixed_params", "tpe:relative_params")  # attributes that only say the trial's parameters again


class _Memory(optuna.storages.InMemoryStorage):
    """Trials are taken over without a copy of what they hold, which would be most of a proposal's time in a long study.

    This storage replaces what it changes, and its trials copy what they give away.
    """

    def create_new_trial(self, study_id: int, template_trial: FrozenTrial | None = None) -> int:
        return int(super().create_new_trial(study_id, template_trial and _Shared(template_trial)))


class _Shared:
    """A trial whose deep copy is a shallow one."""

    def __init__(self, trial: FrozenTrial) -> None:
        self.trial = trial

    def __deepcopy__(self, memo: Any) -> FrozenTrial:
        return copy.copy(self.trial)


class Proposer:
    """Proposals of one study. `goal`: with its floors as numbers; `starts`: the trials that it begins with;
    `observed`: trials of earlier studies whose results are known from the beginning."""

    def __init__(
        self, spec: StudyConfig, goal: Goal, starts: Sequence[Start], observed: Sequence[Observation] = ()
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.spec, self.goal, self.starts, self.observed = spec, goal, list(starts), list(observed)
        self.dimensions = spec.dimensions()
        self.distributions = {dimension.path: dimension.distribution for dimension in self.dimensions}
        self._frozen: dict[tuple[int, str, int], FrozenTrial] = {}  # an ended trial does not change

    def propose(self, rows: Mapping[int, TrialRow], number: int, lag: int, *, rerun_of: int | None = None) -> Proposal:
        """For trial `number`, given all before it (0 ... number-1, whatever of them is stored); a repetition of
        `rerun_of`, if that is asked for."""
        return self.propose_from(rows, number, known(rows, number, lag), rerun_of=rerun_of)

    def propose_from(
        self, rows: Mapping[int, TrialRow], number: int, seen: Sequence[TrialRow], *, rerun_of: int | None = None
    ) -> Proposal:
        """The same, `seen` being what is known; of the others before `number` the parameters count alone."""
        if rerun_of is not None:
            return self._asked(rows, number, seen, Start("", dict(rows[rerun_of].params)), rerun_of)
        return self._asked(rows, number, seen, self._given(rows, number), None)

    def _given(self, rows: Mapping[int, TrialRow], number: int) -> Start | None:
        """The start that is trial `number`'s turn, if any is left. A grid goes on with the points that were dropped."""
        before = [rows[other] for other in range(number) if rows[other].rerun_of is None]
        if len(before) < len(self.starts):
            return self.starts[len(before)]
        if not self.spec.sampler.row.exhaustive:
            return None
        gone = [row for row in before if is_gone(row, number)]
        tried = [row.params for row in before if row not in gone]
        again = next((row.params for row in gone if row.params not in tried), None)
        assert again is not None, "every point of the grid is there: the budget is their number"
        return Start("grid", dict(again))

    def _asked(
        self, rows: Mapping[int, TrialRow], number: int, seen: Sequence[TrialRow], start: Start | None,
        rerun_of: int | None,
    ) -> Proposal:  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            study = optuna.create_study(directions=samplers.directions(self.spec), storage=_Memory())
            by_number = {row.number: row for row in seen}
            study.add_trials(self._earlier(seen))
            for other in range(number):
                study.add_trial(self.frozen(by_number.get(other) or self._unknown(rows[other], number)))
            study.sampler = samplers.sampler_for(self.spec, number, self.dimensions)
            if start is not None:
                study.enqueue_trial(start.values, user_attrs={samplers.GIVEN: True})
            trial = study.ask()
            assert trial.number == len(self.observed) + number, "all before it are there"
            params = samplers.draw(trial, self.dimensions)
        own = study.get_trials(deepcopy=False)[-1].system_attrs
        memory = {key: value for key, value in own.items() if not key.startswith(REPEATED)}
        origin = None if start is None or rerun_of is not None else start.origin
        return Proposal(number, params, origin, memory, rerun_of)

    def _earlier(self, seen: Sequence[TrialRow]) -> list[FrozenTrial]:
        """The earlier studies' trials, each number shifted by what the trials that were run again here differ by, in
        the mean: another length of training or other data move all of them more or less alike."""
        again = {(row.origin, *row.params.items()): row.last for row in seen if row.state == "complete" and row.last}
        pairs = [(each, again.get((each.origin, *each.values.items()))) for each in self.observed]
        both = [(each.measured, last) for each, last in pairs if last]
        shift = {
            name: statistics.fmean(last.at_best(name) - old[name] for old, last in both) if both else 0.0
            for name in (*self.goal.names, *self.goal.at_least)
        }
        return [
            optuna.trial.create_trial(
                state=TrialState.COMPLETE,
                params=each.values,
                distributions={path: self.distributions[path] for path in each.values},
                values=[each.measured[name] + shift[name] for name in self.goal.names],
                user_attrs={samplers.PRIOR: each.origin},
                constraints={
                    name: floor - each.measured[name] - shift[name] for name, floor in self.goal.at_least.items()
                },
            )
            for each in self.observed
        ]

    def _unknown(self, row: TrialRow, number: int) -> TrialRow:
        """A trial of which trial `number` knows the parameters alone: it is pending, or was dropped."""
        state = "dropped" if is_gone(row, number) else "running"
        return TrialRow(row.number, state, row.params, row.config, row.started_ms, rerun_of=row.rerun_of,
                        origin=row.origin, memory=row.memory)  # fmt: skip

    def frozen(self, row: TrialRow) -> FrozenTrial:
        """A trial as Optuna has it: its value if it is of full length, what it reported, how much it misses."""
        key = (row.number, row.state, len(row.epochs))
        if key not in self._frozen:
            self._frozen[key] = self._made(row)
        return self._frozen[key]

    def _made(self, row: TrialRow) -> FrozenTrial:
        last = row.last if row.state != "dropped" else None
        single = len(samplers.directions(self.spec)) == 1
        value = samplers.values(self.spec, last) if last and row.state == "complete" else None
        state = OPTUNA_STATES[row.state]
        if state == TrialState.COMPLETE and value is None:
            state = TrialState.FAIL  # it ended without a word
        told = {
            "agft.stop_reason": row.stop_reason, "agft.failure_kind": row.failure_kind, "agft.origin": row.origin,
            "agft.rerun_of": row.rerun_of, "agft.dropped": row.state == "dropped" or None,
            samplers.GIVEN: row.origin is not None or row.rerun_of is not None or None,
            samplers.REACHED: samplers.values(self.spec, last) if last and row.state == "pruned" else None,
        }  # fmt: skip
        floors = self.goal.at_least if last and state != TrialState.RUNNING else {}
        return optuna.trial.create_trial(
            state=state,
            params={path: row.params[path] for path in self.distributions if path in row.params},
            distributions={path: found for path, found in self.distributions.items() if path in row.params},
            values=value,
            intermediate_values=(
                {record.epoch: score(record, self.goal) for record in row.epochs} if last and single else {}
            ),
            user_attrs={key: value for key, value in told.items() if value is not None},
            system_attrs=dict(row.memory or {}),
            constraints={name: floor - last.at_best(name) for name, floor in floors.items()} if last else None,
        )


def proposer_of(study: StudyRow) -> Proposer:
    """Of a study that has begun: its goal is known, and the trials that it begins with are stored."""
    assert study.goal is not None, "the unmodified model is measured before the first trial"
    assert study.starts is not None, "they are stored before the first trial"
    starts = [Start(each["origin"], each["values"]) for each in study.starts if "measured" not in each]
    observed = [Observation(**each) for each in study.starts if "measured" in each]
    return Proposer(study.spec, study.goal, starts, observed)


def configured(base: Mapping[str, Any], params: Mapping[str, Any], dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """A trial's configuration, as it is stored. An impossible one is stored as it is, and fails where it starts, like
    any other: raised here, it would come back as the first trial of every driver."""
    config = apply_params(base, params, dimensions)
    with contextlib.suppress(ValidationError):
        config = TrialConfig.model_validate(config).model_dump(mode="json")
    return config


def first_proposals(spec: StudyConfig, count: int, starts: Sequence[Start] | None = None) -> list[dict[str, Any]]:
    """Parameters of the first `count` trials of a study that knows no result yet. `starts`: instead of the file's."""
    proposer = Proposer(spec, spec.goal.at({}), given(spec, spec.dimensions()) if starts is None else starts)
    rows: dict[int, TrialRow] = {}
    for number in range(count):
        rows[number] = pending(proposer.propose_from(rows, number, ()))
    return [row.params for row in rows.values()]


def pending(proposal: Proposal, config: Mapping[str, Any] | None = None, started_ms: int = 0) -> TrialRow:
    """The row of a trial that has just been proposed."""
    return TrialRow(
        proposal.number, "running", dict(proposal.params), dict(config or {}), started_ms, rerun_of=proposal.rerun_of,
        origin=proposal.origin, memory=dict(proposal.memory),
    )  # fmt: skip


def given(spec: StudyConfig, dimensions: list[Dimension], prior: Sequence[Start] = ()) -> list[Start]:
    """The trials that a study begins with, none twice; `prior`: those of earlier studies (`study.search.prior`)."""
    found: list[Start] = []
    for start in [*given_trials(spec, dimensions), *prior]:
        if start.values and not any(start.values == other.values for other in found):
            found.append(start)
    return found


def remembered(proposer: Proposer, rows: Mapping[int, TrialRow], lag: int) -> dict[int, TrialRow]:
    """The rows, with what the sampler kept derived anew where it is missing: files are not trusted with it."""
    found: dict[int, TrialRow] = {}
    for number in sorted(rows):
        row = rows[number]
        if row.memory is None:
            row = replace(row, memory=dict(proposer.propose(found, number, lag, rerun_of=row.rerun_of).memory))
        found[number] = row
    return found
