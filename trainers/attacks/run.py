"""The one way to run an attack that a model is measured under, whatever row of EVAL_ATTACKS it is."""

from __future__ import annotations

from dataclasses import replace

import torch

from trainers.attacks.case import Case, Outcome
from trainers.schema.attacks import EvalAttackParameters


def run_attack(case: Case, parameters: EvalAttackParameters) -> Outcome:
    """The attack that `parameters` name, on one batch.

    Refused: images that are not fp32 in [0, 1], a negative radius, a norm or a number of classes for which the attack
    is not defined, logits that are not finite. A radius of 0 is the identity. Weights' gradients, `.grad`, model mode
    and random state are left alone, and an image's result depends on the image, its index and the seed only (but for
    rows that say `keyed = False`).
    """
    parameters.check(norm=case.norm, num_classes=case.num_classes)
    images = case.images
    if images.dtype != torch.float32 or images.ndim != 4:
        raise ValueError(f"images must be float32 [B, 3, H, W]; got {images.dtype} {tuple(images.shape)}")
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must be in [0, 1]; got {images.min():g} to {images.max():g}")
    if not case.eps >= 0:
        raise ValueError(f"eps {case.eps}: a radius is not negative")
    case = replace(case, images=images.detach())
    outcome: Outcome = parameters.run(case) if case.eps > 0 else _untouched(case)
    finite = outcome.worst.margin.isfinite()
    if not (finite if case.done is None else finite | case.done).all():
        raise ValueError(f"attack {parameters.name!r}: the model's logits are not finite")
    return outcome


def _untouched(case: Case) -> Outcome:
    worst = case.worst()
    worst.look(case.clean(), case.images)
    return Outcome(case.images.clone(), worst)
