"""Who may be promoted: the best full-length trials by the study's goal, one by name, or points of the front.

`Standard` is what candidates, champion and unmodified CLIP are compared by: floors first, then a value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from study.errors import StudyFailed, UserError
from study.results.ranking import pareto_front, ranked
from study.spec.config import StudyConfig
from study.spec.promotion import SELECTION, Preference, parse_floor, parse_preference
from study.store.rows import StudyRow, TrialRow
from trainers.schema.training import ACCURACIES, Metric


@dataclass(frozen=True)
class Standard:
    """A weighted mean of metrics, above floors. Weights are 0 or more and sum to 1.

    `at_least`: the floors as accuracies; `floors`: as they are written.
    """

    weights: Mapping[Metric, float]
    at_least: Mapping[Metric, float]
    floors: Mapping[Metric, str] = field(default_factory=dict)

    def value(self, of: Callable[[Metric], float]) -> float:
        """The number that is compared."""
        return sum(weight * of(name) for name, weight in self.weights.items())

    def missing(self, of: Callable[[Metric], float]) -> float:
        """By how much the floors are missed, all together; 0 when none is."""
        return sum(max(0.0, floor - of(name)) for name, floor in self.at_least.items())

    def rank(self, of: Callable[[Metric], float]) -> tuple[float, float]:
        """Greater is better."""
        return -self.missing(of), self.value(of)

    @property
    def name(self) -> str:
        """Of the value, for people: `robust accuracy`, `0.7 robust + 0.3 clean accuracy`."""
        shares = sorted(self.weights.items(), key=lambda item: (-item[1], item[0]))
        if len(shares) == 1:
            return shares[0][0].replace("_", " ")
        return " + ".join(f"{share:.2g} {name.removesuffix('_accuracy')}" for name, share in shares) + " accuracy"


def preference_of(spec: StudyConfig, given: str | None) -> Preference | None:
    """What is wanted of the study's front: as given on the command line, else as the study says."""
    if given is not None and not spec.goal.metrics:
        raise UserError(
            f"--preference: chooses on a front; the goal of study {spec.name!r} is {spec.goal.metric} alone"
        )
    wanted = given if given is not None else spec.promote.preference
    try:
        return None if wanted is None else parse_preference(wanted)
    except ValueError as error:
        raise UserError(f"--preference: {error}") from None


def standard_of(spec: StudyConfig, preference: Preference | None, clip: Mapping[str, Any]) -> Standard:
    """By what models are compared, given the unmodified model's accuracies on the same images."""
    weights = _weights(spec, preference)
    total, floors = sum(weights.values()), floors_of(spec, preference)
    return Standard(
        {name: weight / total for name, weight in weights.items() if weight},
        {name: parse_floor(text).resolve(clip[name]) for name, text in floors.items()},
        floors,
    )


def _weights(spec: StudyConfig, preference: Preference | None) -> Mapping[Metric, float]:
    return preference.weights if preference is not None else dict.fromkeys(spec.goal.names, 1.0)


def check_weights(spec: StudyConfig, preference: Preference | None) -> None:
    """`UserError` if models would be compared by a calibration, which is no mean over images: no bound of it is known
    that a gate could ask for."""
    wrong = [name for name, weight in _weights(spec, preference).items() if weight and name not in ACCURACIES]
    if wrong:
        raise UserError(
            f"study {spec.name!r}: {wrong[0]} may be searched for and may have a floor, but no promotion decides by "
            "it: it is no mean over images, so a difference to the champion has no bound. Promote by an accuracy: "
            f"--preference 'max robust with {wrong[0]} >= clip - 0.02', which needs goal.metrics: "
            f"[robust_accuracy, {wrong[0]}]"
        )


def floors_of(spec: StudyConfig, preference: Preference | None) -> dict[Metric, str]:
    """The least accuracies of the standard, as they are written."""
    return {**spec.goal.subject_to, **(preference.floors if preference is not None else {})}


def shortage(found: Sequence[TrialRow], count: int) -> str | None:
    """A sentence if fewer trials can be compared than were asked for: the best of few is a weaker choice."""
    if len(found) >= count:
        return None
    trials = "1 full-length trial reaches" if len(found) == 1 else f"{len(found)} full-length trials reach"
    return (
        f"only {trials} the floors, of {count} candidates asked for: fewer are compared (more trials run to full "
        "length, or fewer that are stopped early, would give more)"
    )


def candidates(
    study: StudyRow, trials: Sequence[TrialRow], *, count: int, number: int | None, preference: Preference | None
) -> list[TrialRow]:
    """The trials to be compared, the best on the dev sets first. Raises `UserError`, or `StudyFailed` if none may be.

    Of a goal with several metrics: points of the front that reach the floors, by the preference, else by the mean.
    """
    if number is not None:
        return [_named(study, trials, number)]
    every = ranked(trials, study.goal) if study.goal else []
    found = [trial for trial in every if trial.last and trial.last.best_feasible and trial.best]
    if study.spec.goal.metrics and study.baseline:
        standard = standard_of(study.spec, preference, study.baseline.model_dump())
        front = {trial.number for trial in pareto_front(found, study.spec.goal.names)}
        found = [trial for trial in found if trial.number in front and not standard.missing(_of(trial))]
        found = _sorted(found, standard, SELECTION[preference.rule].scores if preference else None)
    if not found:
        raise StudyFailed(f"study {study.name!r} has no finished trial that reaches every floor; nothing to promote")
    return found[:count]


def _sorted(
    front: list[TrialRow],
    standard: Standard,
    scores: Callable[[Sequence[Mapping[Metric, float]]], Sequence[float]] | None,
) -> list[TrialRow]:
    """The most wanted first; of equals, the earlier trial."""
    values = [standard.value(_of(trial)) for trial in front]
    if scores is not None and front:
        metrics = list(standard.weights)
        values = list(scores([{name: _of(trial)(name) for name in metrics} for trial in front]))
    order = sorted(range(len(front)), key=lambda place: (-values[place], front[place].number))
    return [front[place] for place in order]


def _of(trial: TrialRow) -> Callable[[Metric], float]:
    """A trial's accuracies on the dev sets."""
    assert trial.last is not None
    return trial.last.at_best


def _named(study: StudyRow, trials: Sequence[TrialRow], number: int) -> TrialRow:
    by_number = {trial.number: trial for trial in trials}
    full = [str(trial.number) for trial in trials if trial.state == "complete" and trial.best]
    known = f"full-length trials: {', '.join(full) or 'none yet'}"
    trial = by_number.get(number)
    if trial is None:
        raise UserError(f"--trial {number}: study {study.name!r} has no such trial; {known}")
    if trial.state != "complete" or not trial.best:
        epochs = f"{len(trial.epochs)} of {study.spec.train.epochs} epochs"
        why = f"is {trial.state} after {epochs}" + (f" ({trial.stop_reason})" if trial.stop_reason else "")
        raise UserError(f"--trial {number}: it {why}; only a trial of full length can be promoted; {known}")
    return trial
