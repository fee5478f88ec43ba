"""Published numbers: `published.yaml`, one record a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import Field

from trainers.evaluation.record import EvaluationRecord
from trainers.schema.attacks import EvalAttackParameters
from trainers.schema.suite import SUITES
from trainers.schema.units import Fraction, Frozen, eps_label

MEAN = "mean"


class PublishedAttack(Frozen):
    """The attack of a published table; None for what was not obtained."""

    names: tuple[str, ...] = Field(description="what our evaluation calls it")
    steps: int | None = None
    step_size: Fraction | None = None
    eps: Fraction | None = None


class Published(Frozen):
    """One published table; `rows`: method -> dataset (or `mean`) -> percent."""

    id: str
    source: str
    what: str
    arch: str | None = Field(default=None, description="None where it was not noted")
    trained: str = Field(description="what the methods were fine-tuned on")
    sets: str = Field(description="a suite of ours with the same sets, or words")
    attack: PublishedAttack | None = Field(description="None: clean accuracy")
    protocol: str = Field(description="strict or paper, as ours are called, or `another`")
    read: str = Field(description="where the numbers were read, see the file")
    theirs: str | None = Field(default=None, description="how it was computed, where no record of ours can be the same")
    measured_on: dict[str, tuple[int, int, int, str]] = Field(
        default_factory=dict, description="dataset -> images, classes, pixels of a side, template"
    )
    never: str | None = Field(default=None, description="why it is compared with no record at all")
    note: str | None = None
    decimals: int = Field(default=2, description="how many the source gives")
    rows: dict[str, dict[str, float]]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The sets that its mean is over, if they are sets of ours."""
        return SUITES[self.sets][0].datasets if self.sets in SUITES else ()


@cache
def published() -> tuple[Published, ...]:
    """All tables, in the file's order; a table's own fields go before its source's."""
    text = resources.files("study").joinpath("published.yaml").read_text(encoding="utf-8")
    return tuple(_table(source, table) for source in yaml.safe_load(text) for table in source["tables"])


def _table(source: dict[str, Any], table: dict[str, Any]) -> Published:
    fields = {**source, **table, "id": f"{source['id']}: {table['id']}"}
    del fields["tables"]
    return Published.model_validate(fields)


# May records be compared with a published table, and what must be kept in mind if so? All of it from the records.

FACTS = ("images", "classes", "pixels a side")
SAME = 1e-9  # of lengths in pixels


@dataclass(frozen=True)
class Standing:
    """`barrier`: why not; None if so, then `differences` of the procedures and the `records` to compare with."""

    barrier: str | None
    differences: tuple[str, ...] = ()
    records: tuple[EvaluationRecord, ...] = ()


def standing(table: Published, records: Sequence[EvaluationRecord]) -> Standing:
    """Of one model's records, one evaluation."""
    if table.never:
        return Standing(table.never)
    if not table.datasets:
        return Standing(f"its sets are {table.sets}, and its procedure is another")
    arch = records[0].model.arch
    if table.arch is not None and _plain(arch) != _plain(table.arch):
        return Standing(f"the model is {arch}, theirs {table.arch}")
    known = [record for record in records if record.dataset.name in table.datasets]
    if not known:
        return Standing("none of its sets was measured")
    if table.attack is None:
        fitting = _largest(known)
        return Standing(None, _differences(table, fitting), fitting)
    return _under_attack(table, table.attack, known)


def _plain(arch: str) -> str:
    """The activation is part of the weights' recipe, not of the comparison."""
    return arch.removesuffix("-quickgelu").lower()


def _largest(records: Iterable[EvaluationRecord]) -> tuple[EvaluationRecord, ...]:
    """Of every set the record with the most images: clean accuracy is the same under every attack."""
    found: dict[str, EvaluationRecord] = {}
    for record in records:
        best = found.get(record.dataset.name)
        if best is None or best.clean.total < record.clean.total:
            found[record.dataset.name] = record
    return tuple(found.values())


def _under_attack(table: Published, attack: PublishedAttack, known: Sequence[EvaluationRecord]) -> Standing:
    """With the attack that is most like theirs, where there are several: the same for all sets."""
    words = " or ".join(attack.names)
    named = [record for record in known if record.attack.attack.name in attack.names and record.attack.norm == "linf"]
    named = [record for record in named if getattr(record.attack.attack, "target", "none") == "none"]
    if not named:
        return Standing(f"no untargeted linf {words} was made")
    by_label: dict[str, list[EvaluationRecord]] = {}
    for record in named:
        if any(attack.eps is None or abs(at.eps - attack.eps) < SAME for at in record.radii):
            by_label.setdefault(record.attack_label, []).append(record)
    if not by_label:
        assert attack.eps is not None, "any radius would do"
        return Standing(f"{words} was not made at {eps_label(attack.eps)}")
    closest = min(by_label.values(), key=lambda group: (len(_of_attack(attack, group[0].attack.attack)), -len(group)))
    return Standing(None, _differences(table, closest), tuple(closest))


def _differences(table: Published, records: Sequence[EvaluationRecord]) -> tuple[str, ...]:
    """One line for everything in which the two procedures are known to differ."""
    first, found = records[0], []
    if table.attack is not None:
        found += _of_protocol(table.protocol, first.protocol)
        found += _of_attack(table.attack, first.attack.attack)
    fewer = [f"{record.dataset.name} {record.dataset.sample:,} of {record.dataset.images:,}" for record in records
             if record.dataset.sample < record.dataset.images]  # fmt: skip
    if fewer:
        found.append(f"ours is a class-stratified sample: {', '.join(fewer)}")
    found += [line for record in records for line in _of_set(table, record)]
    if table.theirs:
        found.append(f"theirs: {table.theirs}; ours: {first.model.dtype} on {first.device}")
    found.append(f"theirs was fine-tuned on {table.trained}; what ours was fine-tuned on is not in its record")
    if checks := sorted({check for record in records for check in record.failed_checks}):
        found.append(f"sanity checks of ours failed: {', '.join(checks)}; do not compare before that is understood")
    return tuple(found)


def _of_protocol(theirs: str, ours: str) -> list[str]:
    if ours == theirs:
        return []
    means = {
        "strict": "an image is fooled if any iterate fools it",
        "paper": "every image is attacked, and the last iterate counts",
    }
    return [f"ours is protocol {ours} ({means[ours]}), theirs is as {theirs} ({means[theirs]})"]


def _of_attack(theirs: PublishedAttack, ours: EvalAttackParameters) -> list[str]:
    """Settings that differ; what was not obtained of theirs cannot."""
    found = []
    steps, restarts = getattr(ours, "steps", None), getattr(ours, "restarts", 1)
    if theirs.steps is not None and steps != theirs.steps:
        found.append(f"ours has {steps} steps, theirs {theirs.steps}")
    if theirs.step_size is not None and theirs.eps is not None:
        step = ours.resolved_step_size(theirs.eps)
        if abs(step - theirs.step_size) > SAME:
            found.append(f"our step is {eps_label(step)}, theirs {eps_label(theirs.step_size)}")
    if restarts != 1:
        found.append(f"ours has {restarts} restarts, theirs 1")
    if not getattr(ours, "random_start", True):
        found.append("ours starts at the image, theirs at a random point of the ball")
    return found


def _of_set(table: Published, record: EvaluationRecord) -> list[str]:
    """Images, classes, size and template of a dataset, where theirs are known."""
    data = record.dataset
    if data.name not in table.measured_on:
        return []
    *numbers, template = table.measured_on[data.name]
    ours = (data.images, data.num_classes, data.resolution)
    found = [f"{data.name}: ours has {mine:,} {what}, theirs {other:,}"
             for what, mine, other in zip(FACTS, ours, numbers, strict=True) if mine != other]  # fmt: skip
    if data.templates != (template,):
        found.append(f"{data.name}: our template is {' | '.join(data.templates)!r}, theirs {template!r}")
    return found
