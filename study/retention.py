"""Which checkpoints are kept: rules as pure functions over stored rows, and what else points at a checkpoint.

For ever: everything under a promoted version, the file that a version was copied from, everything of a trial that has
not finished, and every address that another study names. Of a finished trial the best weights are kept, and its state
to resume from is not needed any more; with `top`, only the best `top` trials and the Pareto front keep their weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from study.results import pareto_front, ranked
from study.rows import StudyRow, TrialRow

__all__ = ["Doomed", "addresses", "spent", "trial_of"]

TRIAL_OBJECT = re.compile(r"/trials/(?P<number>\d+)/a\d+(\.\d+)?/(?P<role>best|latest)\.safetensors$")


@dataclass(frozen=True)
class Doomed:
    """An object (or a folder of the local cache) that no rule keeps, and why."""

    place: str
    bytes: int
    reason: str


def addresses(value: Any) -> set[str]:
    """Every s3:// address anywhere in a JSON value, without a closing slash."""
    if isinstance(value, str):
        return {value.rstrip("/")} if value.startswith("s3://") else set()
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return set().union(*(addresses(each) for each in value)) if value else set()
    return set()


def trial_of(uri: str) -> tuple[int, str] | None:
    """(number, role) of a trial's object; None for anything else below a study."""
    match = TRIAL_OBJECT.search(uri)
    return (int(match["number"]), match["role"]) if match else None


def spent(
    study: StudyRow,
    trials: Sequence[TrialRow],
    objects: Iterable[tuple[str, int]],
    pointed: set[str],
    *,
    top: int | None,
) -> list[Doomed]:
    """What of a study's `objects` (address, bytes) goes. `pointed`: addresses that something else refers to."""
    rows = {trial.number: trial for trial in trials}
    best = _kept(study, trials, top)
    current = {each["uri"] for trial in trials for each in (trial.best, trial.latest) if each}
    found = []
    for uri, size in objects:
        named = trial_of(uri)
        if named is None or is_pointed(uri, pointed):
            continue
        number, role = named
        trial = rows.get(number)
        if trial is None or not trial.finished:
            continue  # of a trial that the database does not know, or that may go on
        if uri not in current:
            found.append(Doomed(uri, size, "of an earlier attempt"))
        elif role == "latest":
            found.append(Doomed(uri, size, f"state of a trial that is {trial.state}"))
        elif number not in best:
            found.append(Doomed(uri, size, f"weights of a trial that is not among the best {top}"))
    return found


def _kept(study: StudyRow, trials: Sequence[TrialRow], top: int | None) -> set[int]:
    """Trials that keep their best weights."""
    if top is None:
        return {trial.number for trial in trials}
    if study.baseline is None:
        return {trial.number for trial in trials}
    order = ranked(trials, study.spec.goal.resolve(study.baseline))
    return {trial.number for trial in [*order[:top], *pareto_front(trials)]}


def is_pointed(uri: str, pointed: set[str]) -> bool:
    """Is the object, or a folder that it is in, referred to?"""
    path = PurePosixPath(uri.removeprefix("s3://"))
    return any(f"s3://{each}" in pointed for each in (path, *path.parents))
