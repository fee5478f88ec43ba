"""Evaluation records made of numbers, for tests of what is done with them."""

from __future__ import annotations

from typing import Any

from trainers.evaluation.record import AtRadius, DatasetFacts, EvaluationRecord, Evidence, ModelFacts, Proportion
from trainers.schema.attacks import EVAL_ATTACKS
from trainers.schema.suite import AttackAt
from trainers.schema.units import eps_label

EVIDENCE = Evidence(
    confidence=0.5, calibration_error=0.1, margin=1.0, top_cosine=0.3, mean_cosine=0.2, top5_overlap=None
)


def record(
    dataset: str,
    clean: int,
    total: int,
    robust: int,
    *,
    attack: str = "pgd",
    eps: float = 1 / 255,
    settings: dict[str, Any] | None = None,
    arch: str = "ViT-B-32-quickgelu",
    resolution: int = 224,
    images: int | None = None,
    **changes: Any,
) -> EvaluationRecord:
    """`clean` of `total` images right without attack, `robust` of them with it."""
    entry = AttackAt(attack=EVAL_ATTACKS[attack].model_validate(settings or {}), eps=(eps,))
    fields: dict[str, Any] = {
        "model": ModelFacts(label="m", weights_sha256="0" * 64, arch=arch, logit_scale=100.0, image_size=224),
        "dataset": DatasetFacts(
            name=dataset, split="test", images=images or total, num_classes=10, resolution=resolution,
            content_sha256="1" * 64, sample=total, sample_sha256="2" * 64, templates=("{}.",), prompts_sha256="3" * 64,
            duplicate_prompts=(),
        ),
        "attack": entry,
        "attack_label": entry.label,
        "attack_parts": (),
        "protocol": "strict",
        "seed": 0,
        "micro_batch": 32,
        "device": "cpu",
        "original": None,
        "surrogate": None,
        "clean": Proportion.of(clean, total),
        "clean_evidence": EVIDENCE,
        "radii": (AtRadius(eps=eps, label=eps_label(eps), robust=Proportion.of(robust, total), evidence=EVIDENCE),),
        "sanity": (),
        "run": {},
    }  # fmt: skip
    return EvaluationRecord.model_validate({**fields, **changes})
