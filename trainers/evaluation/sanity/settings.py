"""The attacks of the sanity checks, their radii, and what they cost."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from trainers.attacks import Norm
from trainers.schema.attacks import APGD, APGDCE, APGDDLR, PGD, EvalAttackParameters, Passes, Square, Transfer

STEPS = 20
STRICT = PGD(steps=STEPS)  # the strict protocol's: steps of eps / 4, one random start
STRONGER = APGD(steps=50, targets=3)
QUERIES = Square(queries=300)
TRANSFERRED = Transfer(attack="pgd", settings={"steps": STEPS})
HUGE = PGD(steps=40)  # on the margin, steps of radius / 16
UNMODIFIED_STEPS = 50

CLIP_MEAN, CLIP_STD = (0.481, 0.458, 0.408), (0.269, 0.261, 0.276)


def _of_channels(values: tuple[float, float, float], like: Tensor) -> Tensor:
    return torch.tensor(values, device=like.device).view(3, 1, 1)


RECODINGS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "un-normalised (mean + std x)": (lambda x: _of_channels(CLIP_MEAN, x) + _of_channels(CLIP_STD, x) * x, 0.0),
    "normalised ((x - mean) / std)": (lambda x: (x - _of_channels(CLIP_MEAN, x)) / _of_channels(CLIP_STD, x), 0.1),
    "in 0..255 (255 x)": (lambda x: 255 * x, 0.1),
    "with red and blue exchanged": (lambda x: x.flip(1), 0.1),
}
"""Other codes for the same images, and by how much a sound model's standing of the label may be better in them."""


def huge_eps(norm: Norm, pixels: int) -> float:
    """L-inf: 64/255. L2: as far as that ball's corners, so that the L2 ball holds it. `pixels` = 3 H W."""
    return 64 / 255 * (math.sqrt(pixels) if norm == "l2" else 1)


def unmodified_eps(norm: Norm, pixels: int) -> float:
    """4/255 on images of 224 x 224. On others, the radius whose ball's corners are as far away in L2.

    A small perturbation moves the logits by its product with the gradient: at equal L2 length that is as much on a few
    pixels as on many. L2: that length itself, 6.1.
    """
    length = 4 / 255 * math.sqrt(3 * 224 * 224)
    return length if norm == "l2" else min(1.0, length / math.sqrt(pixels))


def on_unmodified(num_classes: int) -> EvalAttackParameters:
    """On the DLR loss if there are classes enough: no logit scale makes its gradient vanish."""
    return (APGDDLR if num_classes >= APGDDLR.min_classes else APGDCE)(steps=UNMODIFIED_STEPS)


def passes(*, num_classes: int, norm: Norm = "linf", original: bool = True) -> Passes:
    """Forward and backward passes of one image through all checks, the unmodified CLIP's included.

    The most that it can be: Auto-PGD and Square end early where all images of a batch are fooled.
    """
    attacks: list[EvalAttackParameters] = [STRICT, STRONGER, HUGE]
    if norm in QUERIES.norms:
        attacks.append(QUERIES)
    if original:
        attacks += [TRANSFERRED, on_unmodified(num_classes)]
    costs = [attack.passes(num_classes, norm=norm) for attack in attacks]
    looks = 2 + len(RECODINGS) + 2 + int(original)  # clean twice, re-coded, random noise, gradients; the other's clean
    return looks + sum(forward for forward, _ in costs), 2 + sum(backward for _, backward in costs)
