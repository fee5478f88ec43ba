"""From verdicts to a record: counts, intervals, means, and what identifies model, images and words."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import Tensor, nn

from trainers.data import ImageSet, duplicate_prompts
from trainers.data.base import DatasetEntry
from trainers.evaluation.readings import Readings, calibration_error
from trainers.evaluation.record import AtRadius, DatasetFacts, Evidence, ModelFacts, Proportion
from trainers.evaluation.verdicts import Verdicts
from trainers.model.build import describe
from trainers.model.robust import RobustCLIP
from trainers.model.weights import hash_weights
from trainers.schema.units import eps_label


def clean_result(verdicts: Verdicts) -> tuple[Proportion, Evidence]:
    """Of the images as they are."""
    return _proportion(verdicts.right), _evidence(verdicts.clean, verdicts.right)


def at_radii(verdicts: Verdicts) -> tuple[AtRadius, ...]:
    """Of the adversarial images, one entry for every radius."""
    found = []
    for row, eps in enumerate(verdicts.eps):
        right = ~verdicts.fooled[row]
        readings = verdicts.attacked.each(lambda values, row=row: values[row])  # type: ignore[misc]
        found.append(
            AtRadius(eps=eps, label=eps_label(eps), robust=_proportion(right), evidence=_evidence(readings, right))
        )
    return tuple(found)


def _proportion(right: Tensor) -> Proportion:
    return Proportion.of(int(right.sum()), len(right))


def _evidence(readings: Readings, right: Tensor) -> Evidence:
    """Means in fp64 over the images in dataset order, so that they do not depend on who computed which part."""

    def mean(values: Tensor) -> float:
        return float(values.double().mean())

    return Evidence(
        confidence=mean(readings.confidence),
        calibration_error=calibration_error(readings.confidence, right),
        margin=mean(readings.margin),
        top_cosine=mean(readings.top_cosine),
        mean_cosine=mean(readings.mean_cosine),
        top5_overlap=None if readings.overlap.isnan().any() else mean(readings.overlap),
    )


def model_facts(clip: nn.Module, model: RobustCLIP, label: str) -> ModelFacts:
    """What identifies an open_clip model and says how it is asked."""
    return ModelFacts(
        label=label,
        weights_sha256=hash_weights(clip),
        arch=describe(clip).arch,
        logit_scale=model.logit_scale,
        image_size=model.image_size,
    )


def dataset_facts(image_set: ImageSet, sample: Tensor, entry: DatasetEntry | None) -> DatasetFacts:
    """What identifies the images `sample` (int64 [n], sorted) of a set, and its words; `entry`: its row, if any."""
    return DatasetFacts(
        name=image_set.name,
        split=entry.split if entry is not None else "all",
        images=len(image_set),
        num_classes=len(image_set.classes),
        resolution=int(image_set.images.shape[-1]),
        content_sha256=image_set.content_hash,
        sample=len(sample),
        sample_sha256=hashlib.sha256(sample.numpy().astype("<i8").tobytes()).hexdigest(),
        templates=image_set.templates,
        prompts_sha256=_digest(image_set.prompts()),
        duplicate_prompts=tuple(duplicate_prompts(image_set)),
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
