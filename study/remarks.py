"""What a valid study file says without any effect, or with one that its writer may not expect."""

from __future__ import annotations

from collections.abc import Iterator

from optuna.distributions import CategoricalDistribution

from study.config import StudyConfig
from study.schedule import rungs

__all__ = ["remarks"]

# field -> the names (of the sampler, of the scheduler) that read it
SAMPLER_FIELDS = {"startup_trials": ("tpe", "cmaes"), "population": ("nsga2", "cmaes")}
SCHEDULER_FIELDS = {"reduction_factor": ("asha",), "min_trials": ("median",)}


def remarks(spec: StudyConfig, starts: int = 0) -> list[str]:
    """One line each, `path: rule`. `starts`: trials that are given, which come before anything is proposed."""
    return [*_unread(spec), *_sampler(spec, starts), *_stopping(spec)]


def _unread(spec: StudyConfig) -> Iterator[str]:
    """Fields that the file gives and nobody reads."""
    for part, fields in (("sampler", SAMPLER_FIELDS), ("scheduler", SCHEDULER_FIELDS)):
        block = getattr(spec, part)
        for name, readers in fields.items():
            if name in block.model_fields_set and block.name not in readers:
                yield f"{part}.{name}: has no effect with {block.name}; read by {' and '.join(readers)}"
    for part in ("scheduler", "budget"):
        block = getattr(spec, part)
        if "min_delta" in block.model_fields_set and block.min_delta and block.patience is None:
            yield f"{part}.min_delta: has no effect without {part}.patience"
    if spec.sampler.name == "grid":
        for name in ("warm_starts", "prior"):
            if name in spec.model_fields_set and getattr(spec, name):
                yield f"{name}: has no effect with a grid, whose points are all the trials there are"


def _sampler(spec: StudyConfig, starts: int) -> Iterator[str]:
    name, trials, dimensions = spec.sampler.name, spec.budget.trials, spec.dimensions()
    if name in ("tpe", "cmaes") and trials <= spec.sampler.startup_trials:
        yield f"sampler.startup_trials: {spec.sampler.startup_trials}, so {name} proposes none of the {trials} trials"
    if name == "nsga2" and trials <= (population := spec.sampler.population or 16):
        yield f"sampler.population: {population}, so the {trials} trials do not fill a second generation"
    if name != "grid" and starts > trials:
        yield f"budget.trials: {trials}, and {starts} trials are given: the last {starts - trials} are never run"
    choices = [d.path for d in dimensions if isinstance(d.distribution, CategoricalDistribution)]
    conditional = [d.path for d in dimensions if d.when]
    if name == "cmaes" and (drawn := list(dict.fromkeys([*choices, *conditional]))):
        yield f"sampler.name: cmaes models ranges without conditions; drawn at random: {', '.join(drawn)}"
    if name == "nsga2" and conditional:
        yield f"sampler.name: nsga2 crosses what every trial has; drawn at random: {', '.join(conditional)}"
    if name in ("cmaes", "qmc", "random") and spec.goal.subject_to:
        yield f"goal.subject_to: {name} does not look at floors; they decide which trial is the best"
    if name in ("cmaes", "nsga2") and spec.scheduler.name != "none":
        yield f"scheduler.name: {name} learns from full-length trials only; {spec.scheduler.name} leaves fewer"


def _stopping(spec: StudyConfig) -> Iterator[str]:
    if spec.scheduler.name != "none" and not rungs(spec.scheduler, spec.train.epochs):
        yield f"scheduler.name: {spec.scheduler.name} has no epoch of {spec.train.epochs} to stop a trial at"
    if spec.scheduler.name == "median" and spec.budget.trials <= spec.scheduler.min_trials:
        yield f"scheduler.min_trials: {spec.scheduler.min_trials} others are too many of {spec.budget.trials} trials"
    if spec.budget.patience is not None and spec.budget.patience >= spec.budget.trials:
        yield f"budget.patience: {spec.budget.patience} trials in a row are too many of {spec.budget.trials}"
