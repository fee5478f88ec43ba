"""What a valid study file says without any effect, or with one that its writer may not expect."""

from __future__ import annotations

from collections.abc import Iterator

from optuna.distributions import CategoricalDistribution

from study.search.stopping import rungs
from study.spec.config import StudyConfig

# field -> the names (of the sampler, of the scheduler) that read it
SAMPLER_FIELDS = {"startup_trials": ("tpe", "cmaes"), "population": ("nsga2", "cmaes")}
SCHEDULER_FIELDS = {"reduction_factor": ("asha",), "min_trials": ("median",)}


def remarks(spec: StudyConfig, starts: int = 0) -> list[str]:
    """One line each, `path: rule`. `starts`: trials that are given, which come before anything is proposed."""
    rows = [*_unread(spec), *_sampler(spec, starts), *_stopping(spec)]
    return [f"{path}: {rule}" for holds, path, rule in rows if holds]


Row = tuple[object, str, str]  # when it is said (anything but empty, 0 and False), of which path, and what


def _unread(spec: StudyConfig) -> Iterator[Row]:
    """Fields that the file gives and nobody reads."""
    for part, fields in (("sampler", SAMPLER_FIELDS), ("scheduler", SCHEDULER_FIELDS)):
        block = getattr(spec, part)
        for name, readers in fields.items():
            unread = name in block.model_fields_set and block.name not in readers
            yield unread, f"{part}.{name}", f"has no effect with {block.name}; read by {' and '.join(readers)}"
    for part in ("scheduler", "budget"):
        block = getattr(spec, part)
        unread = "min_delta" in block.model_fields_set and block.min_delta and block.patience is None
        yield unread, f"{part}.min_delta", f"has no effect without {part}.patience"
    for name in ("warm_starts", "prior"):
        unread = spec.sampler.name == "grid" and name in spec.model_fields_set and getattr(spec, name)
        yield unread, name, "has no effect with a grid, whose points are all the trials there are"


def _sampler(spec: StudyConfig, starts: int) -> list[Row]:
    name, trials, startup = spec.sampler.name, spec.budget.trials, spec.sampler.startup_trials
    population, scheduler = spec.sampler.population or 16, spec.scheduler.name
    choices = [d.path for d in spec.dimensions() if isinstance(d.distribution, CategoricalDistribution)]
    conditional = [d.path for d in spec.dimensions() if d.when]
    drawn = list(dict.fromkeys([*choices, *conditional]))
    return [
        (name in ("tpe", "cmaes") and trials <= startup,
         "sampler.startup_trials", f"{startup}, so {name} proposes none of the {trials} trials"),
        (name == "nsga2" and trials <= population,
         "sampler.population", f"{population}, so the {trials} trials do not fill a second generation"),
        (name != "grid" and starts > trials,
         "budget.trials", f"{trials}, and {starts} trials are given: the last {starts - trials} are never run"),
        (name == "cmaes" and drawn,
         "sampler.name", f"cmaes models ranges without conditions; drawn at random: {', '.join(drawn)}"),
        (name == "nsga2" and conditional,
         "sampler.name", f"nsga2 crosses what every trial has; drawn at random: {', '.join(conditional)}"),
        (name in ("cmaes", "qmc", "random") and spec.goal.subject_to,
         "goal.subject_to", f"{name} does not look at floors; they decide which trial is the best"),
        (name in ("cmaes", "nsga2") and scheduler != "none",
         "scheduler.name", f"{name} learns from full-length trials only; {scheduler} leaves fewer"),
    ]  # fmt: skip


def _stopping(spec: StudyConfig) -> list[Row]:
    scheduler, trials, patience = spec.scheduler, spec.budget.trials, spec.budget.patience
    return [
        (scheduler.name != "none" and not rungs(scheduler, spec.train.epochs),
         "scheduler.name", f"{scheduler.name} has no epoch of {spec.train.epochs} to stop a trial at"),
        (scheduler.name == "median" and trials <= scheduler.min_trials,
         "scheduler.min_trials", f"{scheduler.min_trials} others are too many of {trials} trials"),
        (patience is not None and patience >= trials,
         "budget.patience", f"{patience} trials in a row are too many of {trials}"),
    ]  # fmt: skip
