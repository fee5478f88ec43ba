"""What one evaluation is, and the units of work that it is cut into: by the suite, never by who computes them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, Literal

from trainers.data import dataset_entry, safe_name
from trainers.errors import UserError
from trainers.evaluation.record import FORMAT, DatasetFacts, ModelFacts
from trainers.schema.suite import AttackAt, Suite
from trainers.schema.units import Frozen

Device = Literal["cpu", "cuda"]
UNIT_IMAGES = 512  # images of a unit: what a lost worker costs, and what is handed out at a time
UNIT_FORMAT = 2  # of a unit's file and of the arithmetic: raise it when either changes


@dataclass(frozen=True)
class Evaluation:
    """One model under one suite. `device`: kind of device, whose arithmetic decides the last digits."""

    model: ModelFacts
    original: ModelFacts | None
    surrogate: ModelFacts | None
    suite: Suite
    device: Device

    def spec(self) -> dict[str, Any]:
        """Everything that decides the verdicts, as JSON values."""
        return {
            "formats": [FORMAT, UNIT_FORMAT],
            "unit_images": UNIT_IMAGES,
            "device": self.device,
            "model": self.model.model_dump(mode="json"),
            "original": self.original and self.original.model_dump(mode="json"),
            "surrogate": self.surrogate and self.surrogate.model_dump(mode="json"),
            "suite": self.suite.model_dump(mode="json"),
        }

    @property
    def digest(self) -> str:
        """SHA-256 of the specification, hex: what belongs together, and nothing else."""
        return hashlib.sha256(json.dumps(self.spec(), sort_keys=True).encode()).hexdigest()

    @property
    def name(self) -> str:
        """Of its folder."""
        return f"{self.model.label}-{self.suite.name}-{self.digest[:8]}"


class Looked(Frozen):
    """What a worker found when it looked at a dataset: its facts, and which images every unit has."""

    facts: dict[str, DatasetFacts]
    """By sample size (`size`): the dataset with the sample of this size."""
    indices: dict[str, tuple[str, ...]]
    """By sample size: SHA-256 of every unit's indices, little-endian int64."""


@dataclass(frozen=True)
class Unit:
    """Up to UNIT_IMAGES images of one dataset's sample under one attack."""

    dataset: str
    entry: AttackAt
    number: int
    images: int

    @property
    def name(self) -> str:
        """Of its file, and in messages."""
        return f"{safe_name(self.dataset)}/{self.entry.label}/{self.number:04d}"

    @property
    def first(self) -> int:
        """Position of its first image in the sample."""
        return self.number * UNIT_IMAGES


def size(entry: AttackAt) -> str:
    """The key of an attack's sample size."""
    return "all" if entry.samples is None else str(entry.samples)


def units(dataset: str, entry: AttackAt, images: int | None = None) -> tuple[Unit, ...]:
    """All units of a dataset under an attack; `images`: of its sample, if somebody has counted them."""
    if images is None:
        whole = dataset_entry(dataset, "datasets").num_images
        images = whole if entry.samples is None else min(entry.samples, whole)
    firsts = range(0, images, UNIT_IMAGES)
    return tuple(Unit(dataset, entry, number, min(UNIT_IMAGES, images - at)) for number, at in enumerate(firsts))


def planned(suite: Suite) -> int:
    """Units of a suite, before anybody has looked; a folder that only workers have counts as one."""

    def number(dataset: str, entry: AttackAt) -> int:
        try:
            return len(units(dataset, entry))
        except UserError:
            return 1

    return sum(number(dataset, entry) for dataset in suite.datasets for entry in suite.attacks)


def cost(unit: Unit, num_classes: int) -> float:
    """Encoder passes at most, a backward pass counting as two: for the order of work and the time left."""
    forward, backward = unit.entry.attack.passes(num_classes, norm=unit.entry.norm)
    return float(unit.images * (1 + len(unit.entry.eps) * (forward + 2 * backward)))
