"""A study that begins with what earlier studies found: their best trials, mapped by path onto its own search space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from study.errors import UserError
from study.results.ranking import ranked
from study.spec.config import StudyConfig
from study.spec.dimension import METHOD, Dimension, active, shown
from study.spec.starts import Start, at_path
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore, study_names


@dataclass(frozen=True)
class Prior:
    """Trials to begin with, and in words what of the earlier trials does not fit."""

    starts: tuple[Start, ...]
    notes: tuple[str, ...]


def earlier_studies(url: str, spec: StudyConfig) -> list[tuple[StudyRow, list[TrialRow]]]:
    """The prior studies with their trials, from the database; `UserError` for a name that it does not have."""
    names = spec.prior.studies if spec.prior else ()
    try:
        stores = [StudyStore(url, name) for name in names]
        return [(store.load(), store.trials()) for store in stores]
    except UserError as error:
        raise UserError(f"prior.studies: {error}") from None


def check_prior(url: str, spec: StudyConfig) -> None:
    """`UserError` if a study that does not exist yet names a prior one that the database does not have."""
    if spec.prior and spec.name not in study_names(url):
        earlier_studies(url, spec)


def resolve(spec: StudyConfig, earlier: Sequence[tuple[StudyRow, Sequence[TrialRow]]]) -> Prior:
    """The best `prior.top` feasible full-length trials of every earlier study, by that study's own goal, in the order
    of `earlier`; none twice.

    What a trial had at a path comes from its whole configuration, so a path that only this study searches is found
    too. A number outside the range is moved to its end; a choice that is none here is left to the sampler; a trial of
    a method that this study does not have is left out.
    """
    if spec.prior is None:
        return Prior((), ())
    dimensions = spec.dimensions()
    starts: list[Start] = []
    notes: list[str] = []
    for study, trials in earlier:
        best = _best(study, trials)[: spec.prior.top]
        if not best:
            notes.append(f"{study.name}: no feasible full-length trial")
        for trial in best:
            start, said = _mapped(spec, dimensions, study.name, trial)
            notes += said
            if start.values and not any(start.values == other.values for other in starts):
                starts.append(start)
    return Prior(tuple(starts), tuple(notes))


def _best(study: StudyRow, trials: Sequence[TrialRow]) -> list[TrialRow]:
    found: list[TrialRow] = []
    for trial in ranked(trials, study.goal) if study.goal else ():
        repeated = any(trial.params == other.params for other in found)
        if trial.last and trial.last.best_feasible and not repeated:
            found.append(trial)
    return found


def _mapped(spec: StudyConfig, dimensions: list[Dimension], name: str, trial: TrialRow) -> tuple[Start, list[str]]:
    origin = f"{name} trial {trial.number}"
    method = at_path(trial.config, METHOD)
    if method not in spec.blocks():
        return Start(origin, {}), [f"{origin}: left out, it is of {method}, which is not searched here"]
    kept: dict[str, Any] = {}
    notes: dict[str, str] = {}
    for dimension in dimensions:
        value, path = at_path(trial.config, dimension.path), dimension.path
        try:
            given = dimension.read(value)
        except ValueError:
            notes[path] = f"{value} is given in another way there, sampled here"
            continue
        if dimension.holds(given):
            kept[path] = given
        elif (end := _nearest_value(dimension, given)) is not None:
            kept[path] = end
            notes[path] = f"{shown(path, given)} is outside its range here, {shown(path, end)} taken"
        else:
            notes[path] = f"{shown(path, given)} is none of its choices here, sampled instead"
    values = active(dimensions, kept)
    present = [d for d in dimensions if d.path in notes and d.exists(values)]
    left = tuple(d.path for d in present if d.path not in values)
    return Start(origin, values, left), [f"{origin}: {d.path}: {notes[d.path]}" for d in present]


def _nearest_value(dimension: Dimension, given: Any) -> int | float | None:
    """The end of a range that a number lies beyond, or the nearest step; None where that means nothing."""
    distribution = dimension.distribution
    if isinstance(distribution, CategoricalDistribution) or isinstance(given, bool | str) or given is None:
        return None
    assert isinstance(distribution, FloatDistribution | IntDistribution), distribution
    low, high, step = distribution.low, distribution.high, distribution.step
    number = low + step * round((given - low) / step) if step else given
    number = min(max(number, low), high)
    return round(number) if isinstance(distribution, IntDistribution) else float(number)
