"""A study that begins with what earlier studies found, mapped by path onto its own search space.

Their best trials are run again; if the sampler is to observe them, it knows the results of all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from study.errors import UserError
from study.results.ranking import ranked
from study.spec.config import StudyConfig
from study.spec.dimension import METHOD, Dimension, active, shown
from study.spec.starts import Observation, Start, at_path
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore, study_names
from trainers.schema.training import ACCURACIES, CALIBRATIONS


@dataclass(frozen=True)
class Prior:
    """Trials to begin with, results to begin with, and in words what of the earlier trials does not fit."""

    starts: tuple[Start, ...]
    notes: tuple[str, ...]
    observed: tuple[Observation, ...] = ()


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
    if not (spec.prior.observe and spec.sampler.row.observes):
        return Prior(tuple(starts), tuple(notes))
    found = [_observed(spec, dimensions, study, trials) for study, trials in earlier]
    notes += [note for _, said in found for note in said]
    return Prior(tuple(starts), tuple(notes), tuple(each for observed, _ in found for each in observed))


def _observed(
    spec: StudyConfig, dimensions: list[Dimension], study: StudyRow, trials: Sequence[TrialRow]
) -> tuple[list[Observation], list[str]]:
    """The full-length trials of a study that measured as this one does, if they lie in this space as they are."""
    if (study.spec.data.dev, study.spec.evaluate.select) != (spec.data.dev, spec.evaluate.select):
        return [], [f"{study.name}: not observed, its trials were measured on other dev sets or in another way"]
    full = [trial for trial in trials if trial.state == "complete" and trial.last]
    found: list[Observation] = []
    for trial in full:
        start, said = _mapped(spec, dimensions, study.name, trial)
        if start.values and not said and trial.last:
            every = {str(name): getattr(trial.last, f"best_{name}") for name in (*ACCURACIES, *CALIBRATIONS)}
            measured = {name: value for name, value in every.items() if value is not None}
            if not {*spec.goal.names, *spec.goal.subject_to} <= measured.keys():
                return [], [f"{study.name}: not observed, no calibration was measured there"]
            found.append(Observation(start.origin, start.values, measured))
    return found, [f"{study.name}: {len(found)} of {len(full)} full-length trials are observed: they lie in this space"]


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
