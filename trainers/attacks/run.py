"""The one way to run an attack that a model is measured under, whatever row of EVAL_ATTACKS it is."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from trainers.attacks.case import Case, Outcome
from trainers.schema.attacks import EvalAttackParameters


def run_attack(case: Case, parameters: EvalAttackParameters) -> Outcome:
    """The attack that `parameters` name, on one batch.

    Refused: images that are not fp32 in [0, 1], labels that no class has, a radius that is negative or infinite, a norm
    or a number of classes for which the attack is not defined, logits that are not finite. A radius of 0 is the
    identity, and no image at all is attacked by nothing. Weights' gradients, `.grad`, model mode, the gradient mode of
    the caller and random state are left alone, and an image's result depends on the image, its index and the seed only
    (but for rows that say `keyed = False`).
    """
    parameters.check(norm=case.norm, num_classes=case.num_classes)
    with torch.inference_mode(False), torch.enable_grad():
        case = replace(
            case, images=_plain(case.images), labels=_plain(case.labels), index=_plain(case.index),
            done=None if case.done is None else _plain(case.done),
        )  # fmt: skip
        return _checked(case, parameters)


def _plain(tensor: Tensor) -> Tensor:
    """Tensors that were made in inference mode can have no gradient; their copies can."""
    return tensor.clone() if tensor.is_inference() else tensor


def _checked(case: Case, parameters: EvalAttackParameters) -> Outcome:
    images, labels = case.images, case.labels
    if images.dtype != torch.float32 or images.ndim != 4:
        raise ValueError(f"images must be float32 [B, 3, H, W]; got {images.dtype} {tuple(images.shape)}")
    if labels.shape != images.shape[:1] or labels.is_floating_point() or labels.dtype == torch.bool:
        raise ValueError(f"labels must be whole numbers [{len(images)}]; got {labels.dtype} {tuple(labels.shape)}")
    if not 0 <= case.eps < math.inf:
        raise ValueError(f"eps {case.eps}: a radius is finite and not negative")
    case = replace(case, images=images.detach(), labels=labels.to(torch.int64), index=case.index.to(torch.int64))
    if len(images) == 0:
        return Outcome(case.images.clone(), case.worst())
    if not (images.min() >= 0 and images.max() <= 1):
        raise ValueError(f"images must be in [0, 1]; got {images.min():g} to {images.max():g}")
    if not (labels.min() >= 0 and labels.max() < case.num_classes):
        raise ValueError(
            f"labels must be from 0 to {case.num_classes - 1}; got {int(labels.min())} to {int(labels.max())}"
        )
    outcome: Outcome = parameters.run(case) if case.eps > 0 else _untouched(case)
    finite = outcome.worst.margin.isfinite()
    if not (finite if case.done is None else finite | case.done).all():
        raise ValueError(f"attack {parameters.name!r}: the model's logits are not finite")
    return outcome


def _untouched(case: Case) -> Outcome:
    worst = case.worst()
    worst.look(case.clean(), case.images)
    return Outcome(case.images.clone(), worst)
