"""The record of one evaluation: one JSON per (model, dataset, attack). Imports no torch."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any, Literal

from pydantic import Field

from trainers.schema.suite import AttackAt, Protocol
from trainers.schema.units import Frozen


def wilson(correct: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson, JASA 1927), 95 % by default."""
    if not 0 <= correct <= total or total == 0:
        raise ValueError(f"need 0 <= correct <= total and total > 0; got {correct} of {total}")
    p, z2 = correct / total, z * z
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = z * math.sqrt(p * (1 - p) / total + z2 / (4 * total * total)) / (1 + z2 / total)
    return max(0.0, centre - half), min(1.0, centre + half)


FORMAT = 1


class Proportion(Frozen):
    """A count, its ratio, and Wilson's 95 % interval (Wilson, JASA 1927)."""

    correct: int = Field(ge=0, description="images classified right")
    total: int = Field(ge=1, description="images evaluated")
    accuracy: float = Field(ge=0, le=1, description="correct / total")
    low: float = Field(ge=0, le=1, description="lower end of the 95 % interval")
    high: float = Field(ge=0, le=1, description="upper end")

    @classmethod
    def of(cls, correct: int, total: int) -> Proportion:
        """From the counts."""
        low, high = wilson(correct, total)
        return cls(correct=correct, total=total, accuracy=correct / total, low=low, high=high)


class Evidence(Frozen):
    """What the model says about the images besides being right or wrong: means over the images."""

    confidence: float = Field(description="mean largest probability at the model's own logit scale")
    calibration_error: float = Field(description="expected calibration error, 15 equal bins")
    margin: float = Field(description="mean logit of the label less the largest other")
    top_cosine: float = Field(description="mean largest cosine with a class embedding")
    mean_cosine: float = Field(description="mean over images and classes of the cosine")
    top5_overlap: float | None = Field(
        description="mean intersection over union of this model's top 5 and the original model's on the clean image"
    )


class AtRadius(Frozen):
    """One radius: what is left right, and what the model says about the adversarial images."""

    eps: float = Field(description="radius, pixels in [0, 1]")
    label: str = Field(description="the radius in words, such as 4/255")
    robust: Proportion
    evidence: Evidence


class ModelFacts(Frozen):
    """Which model it was, and how it was asked."""

    label: str = Field(description="what the user calls it")
    weights_sha256: str = Field(description="over names, shapes and bytes of all its tensors, as loaded")
    arch: str = Field(description="open_clip architecture")
    logit_scale: float = Field(description="the model's own, at which it was attacked and measured")
    image_size: int = Field(
        description="side of its input; other sizes are resized inside, under the attack's gradient"
    )
    dtype: Literal["float32"] = "float32"


class DatasetFacts(Frozen):
    """Which images and which words."""

    name: str
    split: str = Field(description="which part of the dataset")
    images: int = Field(ge=1, description="images of the whole set")
    num_classes: int = Field(ge=2)
    resolution: int = Field(description="side at which images are attacked, pixels")
    content_sha256: str = Field(description="over images, labels, class names and templates")
    sample: int = Field(ge=1, description="images evaluated, class-stratified")
    sample_sha256: str = Field(description="over the sample's indices in the set, as little-endian int64")
    templates: tuple[str, ...]
    prompts_sha256: str = Field(description="over all prompts, as JSON")
    duplicate_prompts: tuple[tuple[int, ...], ...] = Field(description="classes that no classifier can tell apart")


class Finding(Frozen):
    """One sanity check's outcome."""

    name: str
    outcome: Literal["passed", "failed", "not applicable"]
    value: float | None = None
    threshold: float | None = None
    message: str
    anchor: str = Field(description="its section of docs/sanity.md")


class EvaluationRecord(Frozen):
    """One model on one dataset under one attack at all its radii.

    Everything but `run` is the same whatever the batch size, the number of workers and interruptions.
    """

    format: int = FORMAT
    model: ModelFacts
    dataset: DatasetFacts
    attack: AttackAt
    attack_label: str
    attack_parts: tuple[str, ...] = Field(description="what ran, where the attack is made of others")
    protocol: Protocol
    seed: int
    micro_batch: int = Field(description="images in every forward; another size rounds differently")
    device: str = Field(description="kind of device: cpu, or the GPU's name")
    original: ModelFacts | None = Field(description="the model that top5_overlap compares with")
    surrogate: ModelFacts | None = Field(description="the model that a transfer attack was made on")
    clean: Proportion
    clean_evidence: Evidence
    radii: tuple[AtRadius, ...]
    doubts: tuple[str, ...] = Field((), description="what the attack itself has against the result, a sentence each")
    sanity: tuple[Finding, ...] = Field(description="outcomes of the sanity checks of this evaluation")
    run: dict[str, Any] = Field(description="when, where, how long, with which code and versions")

    @property
    def failed_checks(self) -> tuple[str, ...]:
        return tuple(finding.name for finding in self.sanity if finding.outcome == "failed")

    def conditions(self) -> tuple[str, ...]:
        """What two records must share to be compared image by image: images, words, attack, protocol, seed."""
        data, attack = self.dataset, self.attack.model_dump_json()
        return data.content_sha256, data.sample_sha256, data.prompts_sha256, self.protocol, str(self.seed), attack

    def identity(self) -> str:
        """SHA-256 over everything but `run`: equal for equal results."""
        content = self.model_dump(mode="json", exclude={"run"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
