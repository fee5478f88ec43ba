"""A folder of one's own pictures as four sets, one for each role, which share no picture and where possible no class.

Nothing is copied: the sets are folders of links, beside the study file.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from study.errors import UserError
from trainers.data import not_ready
from trainers.data.folder import FOLDER_PREFIX, SPLITS
from trainers.data.pictures import look

ROLES = ("train", "dev", "confirm", "final")
SHARES = (0.6, 0.15, 0.125, 0.125)
BY_CLASS = 12  # classes from which on whole ones are held out: dev, confirm and final get two at least
LEAST = 2  # pictures of a class in a role

Sets = dict[str, dict[str, list[Path]]]  # role -> class -> pictures


@dataclass(frozen=True)
class Proposal:
    """Which pictures have which role. `how`: in words, for a person."""

    sets: Sets
    how: str

    def lines(self) -> Iterator[str]:
        """A line a role."""
        for role, classes in self.sets.items():
            yield f"{role:<8} {sum(map(len, classes.values())):>6,} pictures of {len(classes)} classes"


def propose(directory: Path) -> Proposal:
    """Roles for the pictures of a folder with a sub-folder a class, or with such folders as train, val and test.

    With BY_CLASS classes or more, whole classes are held out: what is measured was not trained on, as in zero-shot
    evaluation. With fewer, every class gives pictures to every role. The choice is by the SHA-256 of names, so the same
    folder gives the same roles. `UserError` where there are too few pictures.
    """
    if not directory.is_dir():
        raise UserError(f"--data: {directory}: no such folder")
    parts = {each.name.casefold(): each for each in sorted(directory.iterdir())
             if each.is_dir() and each.name.casefold() in SPLITS}  # fmt: skip
    training = next((parts[name] for name in ("train", "training") if name in parts), None)
    rest = [path for path in parts.values() if path != training]
    if training is not None and rest:
        held = _merged(map(_pictures, rest))
        thirds = _by_image(held, ("dev", "confirm", "final"), (1 / 3, 1 / 3, 1 / 3))
        names = ", ".join(path.name for path in rest)
        how = f"trained on {training.name}, the pictures of {names} in three parts"
        return _checked(Proposal({"train": _pictures(training), **thirds}, how), directory)
    found = _pictures(directory)
    if len(found) >= BY_CLASS:
        return _checked(Proposal(_by_class(found), "by class: what is measured was not trained on"), directory)
    return _checked(Proposal(_by_image(found, ROLES, SHARES), "by image: every class is in every role"), directory)


def link(proposal: Proposal, place: Path) -> dict[str, str]:
    """Make the folders of links; dataset names by role. `UserError` if `place` is there already."""
    if place.exists():
        raise UserError(f"{place}: is there already; nothing was written. Give the study file another name")
    for role, classes in proposal.sets.items():
        for name, pictures in classes.items():
            folder = place / role / name
            folder.mkdir(parents=True)
            for number, picture in enumerate(pictures):  # equal names in sub-folders of a class
                os.symlink(picture, folder / f"{number:06d}{picture.suffix}")
    return {role: f"{FOLDER_PREFIX}{place.absolute() / role}" for role in proposal.sets}


def _pictures(directory: Path) -> dict[str, list[Path]]:
    if problems := not_ready({"--data": f"{FOLDER_PREFIX}{directory}"}):  # all of it, every picture's too
        raise UserError("\n".join(problems))
    found = look(directory)
    classes: dict[str, list[Path]] = defaultdict(list)
    for file, label in zip(found.files, found.labels, strict=True):
        classes[found.classes[label]].append(file.absolute())
    return dict(classes)


def _merged(parts: Iterator[dict[str, list[Path]]]) -> dict[str, list[Path]]:
    classes: dict[str, list[Path]] = defaultdict(list)
    for part in parts:
        for name, pictures in part.items():
            classes[name] += pictures
    return dict(classes)


def _shuffled(names: Sequence[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(name.encode()).hexdigest())


def _by_class(found: dict[str, list[Path]]) -> Sets:
    names, sets = _shuffled(list(found)), {}
    counts = [max(2, round(share * len(names))) for share in SHARES[1:]]
    ends = [len(names) - sum(counts), *counts]
    for role, count in zip(ROLES, ends, strict=True):
        sets[role] = {name: found[name] for name in sorted(names[:count])}
        names = names[count:]
    return sets


def _by_image(found: dict[str, list[Path]], roles: Sequence[str], shares: Sequence[float]) -> Sets:
    sets: Sets = {role: {} for role in roles}
    for name, pictures in found.items():
        by_name = {f"{name}/{path.name}/{path}": path for path in pictures}
        order = [by_name[key] for key in _shuffled(list(by_name))]
        counts = [max(LEAST, int(share * len(order))) for share in shares[1:]]
        ends = [len(order) - sum(counts), *counts]
        for role, count in zip(roles, ends, strict=True):
            sets[role][name], order = order[: max(0, count)], order[max(0, count) :]
    return sets


def _checked(proposal: Proposal, directory: Path) -> Proposal:
    short = [f"{role}: {name}" for role, classes in proposal.sets.items() for name, found in classes.items()
             if len(found) < LEAST]  # fmt: skip
    if short:
        raise UserError(f"--data: {directory}: too few pictures to give each role {LEAST} of every class "
                        f"({', '.join(short[:5])}); add some, or name four folders in the study file")  # fmt: skip
    return proposal
