"""Who proposes a trial's parameters: Optuna's samplers behind keyed draws, made anew for every proposal.

A sampler that is opened again with a fixed seed would propose the first trials again; here its seed is
hash(study seed, trial number), so that a restarted driver goes on as if it had never been away. What is drawn without
looking at results (random search, start-up trials, whatever a sampler cannot model) depends on (study seed, trial
number, path) alone: a further parameter leaves the others' draws as they are.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, TPESampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover
from optuna.trial import FrozenTrial, TrialState

from study.spec.config import Sampler, SamplerConfig, StudyConfig
from study.spec.dimension import Dimension
from trainers.schema.records import EpochRecord

# Draws that are keyed by (study seed, trial number, path), so that a new parameter leaves the others' draws alone.


def number_of(*key: object) -> int:
    """A 64-bit number that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "big")


def uniform(*key: object) -> float:
    """In [0, 1)."""
    return (number_of(*key) >> 11) / 2**53


def sobol_point(dimensions: int, index: int, seed: int) -> Sequence[float]:
    """Point `index` of a scrambled Sobol sequence in [0, 1)^dimensions (Owen 1998; scipy's)."""
    from scipy.stats import qmc  # takes a second to import, and only one sampler needs it

    engine = qmc.Sobol(dimensions, scramble=True, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about balance, of points that are asked for one by one
        if index:
            engine.fast_forward(index)
        point = engine.random(1)[0]
    return [float(value) for value in point]


def value_at(distribution: BaseDistribution, place: float) -> Any:
    """The value at a place in [0, 1) of a distribution: uniform places give its own distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(place * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution), distribution
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        half = 0.5 if isinstance(distribution, IntDistribution) else 0.0
        value = math.exp(math.log(low - half) + place * (math.log(high + half) - math.log(low - half)))
        value = round(value) if half else value
    elif step is not None:
        value = low + step * int(place * (round((high - low) / step) + 1))
    else:
        value = low + place * (high - low)
    return min(max(value, low), high)


DIGITS = 10  # of a proposed number: logarithms differ in the last bit from one kind of processor to another
GIVEN = "agft.given"  # of Optuna's trials that nobody proposed: warm starts, repetitions
PRIOR = "agft.prior"  # of those that are an earlier study's; they come before trial 0
REACHED = "agft.reached"  # what a trial had reached in every metric when it was stopped early


def directions(spec: StudyConfig) -> list[str]:
    """Of the Optuna study: one a metric."""
    return ["maximize"] * len(spec.goal.at({}).names)


def values(spec: StudyConfig, record: EpochRecord) -> list[float]:
    """What Optuna is told about a full-length trial, given its last epoch record: one number a metric."""
    return [record.at_best(name) for name in spec.goal.at({}).names]


def draw(trial: optuna.Trial, dimensions: list[Dimension]) -> dict[str, Any]:
    """Sampled values of the dimensions that exist in this trial, each drawn after those that it depends on."""
    found: dict[str, Any] = {}
    for dimension in dimensions:
        if dimension.exists(found):
            found[dimension.path] = _suggest(trial, dimension)
    return found


class Keyed(BaseSampler):
    """Draws keyed by trial and path; from `startup` trials in one of `states` on, the sampler `inner` proposes.

    `inner` is asked for the parameters that it proposes together, and with `alone` also for the others.
    """

    def __init__(
        self, seed: int, inner: BaseSampler | None = None, *, startup: int = 0,
        states: tuple[TrialState, ...] = (TrialState.COMPLETE,), alone: bool = False,
    ) -> None:  # fmt: skip
        self.seed, self.inner, self.startup, self.states, self.alone = seed, inner, startup, states, alone

    def modelling(self, study: optuna.Study) -> BaseSampler | None:
        """The sampler that looks at results, once there are enough of them."""
        if self.startup and len(study.get_trials(deepcopy=False, states=self.states)) < self.startup:
            return None
        return self.inner

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        inner = self.modelling(study)
        return inner.infer_relative_search_space(study, trial) if inner else {}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        inner = self.modelling(study)
        return inner.sample_relative(study, trial, search_space) if inner else {}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        inner = self.modelling(study) if self.alone else None
        if inner:
            return inner.sample_independent(study, trial, param_name, param_distribution)
        earlier = sum(PRIOR in other.user_attrs for other in study.get_trials(deepcopy=False))
        return value_at(param_distribution, uniform(self.seed, trial.number - earlier, param_name))


class Evolving(Keyed):
    """Generations. A child that would only repeat a trial is mutated: its training would find the same again."""

    inner: NSGAIISampler

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """A given trial belongs to a generation, too, though nothing of it is sampled."""
        self.inner.get_trial_generation(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        child = super().sample_relative(study, trial, search_space)
        if child and any(child.items() <= other.params.items() for other in study.get_trials(deepcopy=False)):
            del child[sorted(child)[int(len(child) * uniform(self.seed, trial.number, "mutated"))]]
        return child


class Sobol(Keyed):
    """Scrambled Sobol points over all dimensions; a trial takes those of its point that exist in it.

    The first proposed trial takes the first point, and so on: which one is counted, not remembered, and given trials
    do not count.
    """

    def __init__(self, seed: int, dimensions: Sequence[Dimension]) -> None:
        super().__init__(seed)
        self.dimensions = dimensions

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {dimension.path: dimension.distribution for dimension in self.dimensions}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        before = [other for other in study.get_trials(deepcopy=False) if other.number < trial.number]
        index = sum(GIVEN not in other.user_attrs for other in before)
        point = sobol_point(len(search_space), index, number_of(self.seed, "sobol") >> 32)
        places = zip(search_space.items(), point, strict=True)
        return {path: value_at(distribution, place) for (path, distribution), place in places}


# The rows of SAMPLERS.


def _tpe(spec: StudyConfig, seed: int, dimensions: Sequence[Dimension]) -> BaseSampler:
    """Parameters are modelled together, in a conditional space those that occur together; with several metrics one by
    one, which is Optuna's default there."""
    startup, conditional = spec.sampler.startup_trials, any(dimension.when for dimension in dimensions)
    together = conditional or len(directions(spec)) == 1
    inner = TPESampler(
        seed=seed, n_startup_trials=startup, multivariate=together, group=conditional, constant_liar=True
    )
    return Keyed(spec.seed, inner, startup=startup, states=(TrialState.COMPLETE, TrialState.PRUNED), alone=True)


def _cmaes(spec: StudyConfig, seed: int, dimensions: Sequence[Dimension]) -> BaseSampler:
    """Its state travels in the system attributes of Optuna's trials. Choices and conditional paths stay keyed draws."""
    inner = CmaEsSampler(seed=seed, popsize=spec.sampler.population, warn_independent_sampling=False)
    return Keyed(spec.seed, inner, startup=spec.sampler.startup_trials)


def _nsga2(spec: StudyConfig, seed: int, dimensions: Sequence[Dimension]) -> BaseSampler:
    """With the operators of its paper (Deb et al. 2002): simulated binary crossover and polynomial mutation.

    The first generation and conditional paths are keyed draws.
    """
    return Evolving(
        spec.seed,
        NSGAIISampler(
            seed=seed, population_size=_generation(spec.sampler),
            crossover=SBXCrossover(), mutation=PolynomialMutation(),
        ),
    )  # fmt: skip


def _generation(settings: SamplerConfig) -> int:
    return settings.population or 16


def too_few(spec: StudyConfig) -> Iterator[str]:
    """More trials to begin with than there are."""
    startup, trials = spec.sampler.startup_trials, spec.budget.trials
    if trials <= startup:
        yield f"sampler.startup_trials: {startup}, so {spec.sampler.name} proposes none of the {trials} trials"


def _no_floors(spec: StudyConfig) -> Iterator[str]:
    if spec.goal.subject_to:
        yield f"goal.subject_to: {spec.sampler.name} does not look at floors; they decide which trial is the best"


def _full_length(spec: StudyConfig) -> Iterator[str]:
    if spec.scheduler.row.stops:
        yield (f"scheduler.name: {spec.sampler.name} learns from full-length trials only; "
               f"{spec.scheduler.name} leaves fewer")  # fmt: skip


def _cmaes_remarks(spec: StudyConfig) -> Iterator[str]:
    yield from too_few(spec)
    dimensions = spec.dimensions()
    choices = [d.path for d in dimensions if isinstance(d.distribution, CategoricalDistribution)]
    if drawn := list(dict.fromkeys([*choices, *(d.path for d in dimensions if d.when)])):
        yield f"sampler.name: cmaes models ranges without conditions; drawn at random: {', '.join(drawn)}"
    yield from _no_floors(spec)
    yield from _full_length(spec)


def _nsga2_remarks(spec: StudyConfig) -> Iterator[str]:
    population, trials = _generation(spec.sampler), spec.budget.trials
    if trials <= population:
        yield f"sampler.population: {population}, so the {trials} trials do not fill a second generation"
    if conditional := [dimension.path for dimension in spec.dimensions() if dimension.when]:
        yield f"sampler.name: nsga2 crosses what every trial has; drawn at random: {', '.join(conditional)}"
    yield from _full_length(spec)


TPE = Sampler(
    _tpe,
    lambda s: f"tpe: {s.startup_trials} trials drawn or given, then the results are modelled",
    reads=("startup_trials",), blind=lambda s: s.startup_trials, observes=True, remarks=too_few,
)  # fmt: skip
CMAES = Sampler(
    _cmaes,
    lambda s: f"cmaes: {s.startup_trials} trials drawn or given, then ranges evolve; choices are drawn",
    reads=("startup_trials", "population"), blind=lambda s: s.startup_trials, one_metric=True, remarks=_cmaes_remarks,
)  # fmt: skip
NSGA2 = Sampler(
    _nsga2,
    lambda s: f"nsga2: generations of {_generation(s)}, the first one drawn",
    reads=("population",), blind=_generation, remarks=_nsga2_remarks,
)  # fmt: skip
QMC = Sampler(
    lambda spec, seed, dimensions: Sobol(spec.seed, dimensions),
    lambda s: "qmc: points of a scrambled Sobol sequence, whatever the results",
    remarks=_no_floors,
)
RANDOM = Sampler(
    lambda spec, seed, dimensions: Keyed(spec.seed),
    lambda s: "random: draws, whatever the results",
    remarks=_no_floors,
)
GRID = Sampler(
    lambda spec, seed, dimensions: Keyed(spec.seed),  # every point is a given trial: it is never asked
    lambda s: "grid: every combination of the choices",
    exhaustive=True,
)


def sampler_for(spec: StudyConfig, number: int, dimensions: Sequence[Dimension] | None = None) -> BaseSampler:
    """The sampler for one proposal; `dimensions` are the spec's, which take milliseconds to read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return spec.sampler.row.make(spec, number_of(spec.seed, number) >> 33, dimensions or spec.dimensions())


def _suggest(trial: optuna.Trial, dimension: Dimension) -> Any:
    distribution = dimension.distribution
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return trial.suggest_categorical(dimension.path, distribution.choices)
    if isinstance(distribution, optuna.distributions.IntDistribution):
        return trial.suggest_int(
            dimension.path, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, optuna.distributions.FloatDistribution), distribution
    value = trial.suggest_float(
        dimension.path, distribution.low, distribution.high, step=distribution.step, log=distribution.log
    )
    if distribution.step is not None or GIVEN in trial.user_attrs:
        return value
    return min(max(float(f"{value:.{DIGITS}g}"), distribution.low), distribution.high)
