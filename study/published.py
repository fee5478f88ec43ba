"""Published numbers, and what keeps ours from being compared with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

import yaml
from pydantic import Field

from trainers.result import EvaluationRecord
from trainers.suite import SUITES
from trainers.units import Fraction, Frozen, eps_label

__all__ = ["MEAN", "Published", "Standing", "published", "standing"]

MEAN = "mean"


class PublishedAttack(Frozen):
    """The attack of a published table, as far as it is known."""

    names: tuple[str, ...] = Field(description="what our evaluation calls it")
    steps: int | None = None
    step_size: Fraction | None = None
    eps: Fraction


class Published(Frozen):
    """One published table; `rows`: method -> dataset (or `mean`) -> percent."""

    id: str
    source: str
    what: str
    arch: str
    trained: str
    sets: str = Field(description="a suite of ours with the same sets, or words")
    attack: PublishedAttack | None
    protocol: str
    read: str
    rows: dict[str, dict[str, float]]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The sets that its mean is over, if they are known."""
        return SUITES[self.sets][0].datasets if self.sets in SUITES else ()


@cache
def published() -> tuple[Published, ...]:
    """All tables, in the file's order."""
    text = resources.files("study").joinpath("published.yaml").read_text()
    return tuple(Published.model_validate(row) for row in yaml.safe_load(text))


@dataclass(frozen=True)
class Standing:
    """May our records be compared with a table? `barriers`: why not; `differences`: what to keep in mind if so."""

    barriers: tuple[str, ...]
    differences: tuple[str, ...]
    records: tuple[EvaluationRecord, ...]  # those that the table is compared with


def standing(table: Published, records: Sequence[EvaluationRecord]) -> Standing:
    """Everything is read from the records of one model; nothing about them is assumed."""
    arch = records[0].model.arch
    if _plain(arch) != _plain(table.arch):
        return Standing((f"the model is {arch}, theirs {table.arch}",), (), ())
    if table.protocol == "another" or not table.datasets:
        return Standing((f"its sets are {table.sets}, and its protocol is another",), (), ())
    known = [record for record in records if record.dataset.name in table.datasets]
    if not known:
        return Standing(("none of its sets was measured",), (), ())
    if table.attack is None:
        largest: dict[str, EvaluationRecord] = {}
        for record in known:
            best = largest.get(record.dataset.name)
            if best is None or best.clean.total < record.clean.total:
                largest[record.dataset.name] = record
        return Standing((), _differences(table, list(largest.values())), tuple(largest.values()))
    eps, names = table.attack.eps, table.attack.names
    named = [record for record in known if record.attack.attack.name in names and record.attack.norm == "linf"]
    if not named:
        return Standing((f"no attack {' or '.join(names)} was made",), (), ())
    fitting = [record for record in named if any(abs(at.eps - eps) < 1e-9 for at in record.radii)]
    if not fitting:
        return Standing((f"{' or '.join(names)} was not made at {eps_label(eps)}",), (), ())
    return Standing((), _differences(table, fitting), tuple(fitting))


def _plain(arch: str) -> str:
    """The activation is part of the weights' recipe, not of the comparison."""
    return arch.removesuffix("-quickgelu").lower()


def _differences(table: Published, records: Sequence[EvaluationRecord]) -> tuple[str, ...]:
    """One line for everything in which the two protocols are known to differ."""
    found = []
    first, attack = records[0], table.attack
    if attack is not None:
        ours = first.attack.attack
        if first.protocol != table.protocol:
            found.append(
                f"ours is protocol {first.protocol}: an image is fooled if any iterate fools it, images wrong already "
                "are not attacked; theirs takes the last iterate"
                if first.protocol == "strict"
                else f"ours is protocol {first.protocol}, theirs {table.protocol}"
            )
        steps = getattr(ours, "steps", None)
        if attack.steps is not None and steps != attack.steps:
            found.append(f"ours has {steps} steps, theirs {attack.steps}")
        if attack.step_size is not None:
            step = ours.resolved_step_size(attack.eps)
            if abs(step - attack.step_size) > 1e-9:
                found.append(f"our step is {eps_label(step)}, theirs {eps_label(attack.step_size)}")
    fewer = [f"{record.dataset.name} {record.dataset.sample:,} of {record.dataset.images:,}" for record in records
             if record.dataset.sample < record.dataset.images]  # fmt: skip
    if fewer:
        found.append(f"ours is a class-stratified sample: {', '.join(fewer)}")
    if table.id.startswith("agft"):
        found.append("ours computes in fp32; the official code in fp16 autocast with an unscaled, averaged loss")
        natives = [record for record in records if record.dataset.name.startswith(("cifar", "stl"))]
        if wrong := [record.dataset.name for record in natives if record.dataset.resolution == 224]:
            found.append(f"ours attacks {', '.join(wrong)} at 224 pixels, theirs at the images' own size")
    found.append(f"theirs was fine-tuned on {table.trained}; what ours was fine-tuned on is not in its record")
    if checks := sorted({check for record in records for check in record.failed_checks}):
        found.append(f"sanity checks of ours failed: {', '.join(checks)}; do not compare before that is understood")
    return tuple(found)
