"""Optuna's Gaussian processes as a sampler: every metric and every floor has one, over all that a trial knows.

The process is fitted anew for every proposal. It sees a trial of full length with its values; one that was stopped
early with what it had reached; one that failed with the worst that is known, so that nobody goes there again; one that
is pending by its parameters alone. Numbers are proposed in thousandths of their ranges: an optimum that another
kind of processor finds a millionth of the range away is the same proposal.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler, GPSampler
from optuna.trial import FrozenTrial, TrialState

from study.search.samplers import REACHED, TPE, Keyed, too_few, value_at
from study.spec.config import SAMPLERS, Sampler, StudyConfig
from study.spec.dimension import Dimension

STEPS = 1000  # of a range
MOST_DIMENSIONS = 8  # up to which `auto` takes the Gaussian process


class Gaussian(Keyed):
    """Paths that every trial has are modelled together, choices among them; conditional ones stay keyed draws."""

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self.modelled if self.modelling(study) else {}

    def __init__(self, seed: int, inner: BaseSampler, dimensions: Sequence[Dimension], *, startup: int) -> None:
        super().__init__(seed, inner, startup=startup, states=(TrialState.COMPLETE, TrialState.PRUNED))
        self.modelled = {
            each.path: each.distribution for each in dimensions if not each.when and not each.distribution.single()
        }

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Nothing, and so keyed draws, where only a trial that there is would be repeated."""
        if not search_space:
            return {}
        assert self.inner is not None
        before = [each for each in study.get_trials(deepcopy=False) if each.number != trial.number]
        view = optuna.create_study(directions=study.directions, sampler=self.inner)
        view.add_trials(list(as_results(before, search_space)))
        found = {path: _stepped(search_space[path], value) for path, value in view.ask(search_space).params.items()}
        return {} if any(found.items() <= each.params.items() for each in before) else found


def as_results(trials: Sequence[FrozenTrial], space: dict[str, BaseDistribution]) -> Iterator[FrozenTrial]:
    """The trials as a Gaussian process sees them; dropped ones not at all."""
    known: dict[int, tuple[list[float], dict[str, float]]] = {}
    for place, trial in enumerate(trials):
        values = trial.values if trial.state == TrialState.COMPLETE else trial.user_attrs.get(REACHED)
        if values is not None:
            known[place] = (list(values), dict(trial.constraints))
    worst = [min(column) for column in zip(*(values for values, _ in known.values()), strict=True)]
    floors = [floors for _, floors in known.values()]
    missed = {name: max(each[name] for each in floors) for name in floors[0]} if floors else {}
    for place, trial in enumerate(trials):
        told = known.get(place)
        if trial.state == TrialState.FAIL and told is None and "agft.dropped" not in trial.user_attrs and known:
            told = (worst, missed)
        if told is None and trial.state != TrialState.RUNNING:
            continue
        yield optuna.trial.create_trial(
            state=TrialState.COMPLETE if told else TrialState.RUNNING,
            params={path: trial.params[path] for path in space},
            distributions=space,
            values=told[0] if told else None,
            constraints=told[1] if told else None,
        )


def _stepped(distribution: BaseDistribution, value: Any) -> Any:
    """The nearest of the steps of a range; what has steps of its own as it is."""
    if not isinstance(distribution, FloatDistribution) or distribution.step is not None:
        return value
    low, high = distribution.low, distribution.high
    place = math.log(value / low) / math.log(high / low) if distribution.log else (value - low) / (high - low)
    return value_at(distribution, round(STEPS * place) / STEPS)


def _gp(spec: StudyConfig, seed: int, dimensions: Sequence[Dimension]) -> BaseSampler:
    inner = GPSampler(seed=seed, n_startup_trials=1, warn_independent_sampling=False)
    return Gaussian(spec.seed, inner, dimensions, startup=spec.sampler.startup_trials)


def taken(spec: StudyConfig, dimensions: Sequence[Dimension]) -> str:
    """Which sampler `auto` stands for: the Gaussian process in a small space of numbers that every trial has."""
    plain = all(not (d.when or isinstance(d.distribution, CategoricalDistribution)) for d in dimensions)
    return "gp" if plain and len(dimensions) <= MOST_DIMENSIONS else "tpe"


def _gp_remarks(spec: StudyConfig) -> Iterator[str]:
    yield from too_few(spec)
    if drawn := [dimension.path for dimension in spec.dimensions() if dimension.when]:
        yield f"sampler.name: gp models what every trial has; drawn at random: {', '.join(drawn)}"


def _auto_remarks(spec: StudyConfig) -> Iterator[str]:
    name = taken(spec, spec.dimensions())
    yield f"sampler.name: auto is {name} in this space"
    yield from SAMPLERS[name].remarks(spec)


GP = Sampler(
    _gp,
    lambda s: f"gp: {s.startup_trials} trials drawn or given, then a Gaussian process is fitted to the results",
    reads=("startup_trials",), blind=lambda s: s.startup_trials, observes=True, remarks=_gp_remarks,
)  # fmt: skip
AUTO = Sampler(
    lambda spec, seed, dimensions: SAMPLERS[taken(spec, dimensions)].make(spec, seed, dimensions),
    lambda s: f"auto: {s.startup_trials} trials drawn or given; then gp, if all of up to {MOST_DIMENSIONS} parameters "
    "are numbers that every trial has, else tpe",
    reads=("startup_trials",), blind=TPE.blind, observes=True, remarks=_auto_remarks,
)  # fmt: skip
