"""Balls around images, steps of length 1 in their norm, and the way back into them."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]


def ball(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Lower and upper corner of the eps-ball around `images`, cut to [0, 1]."""
    return (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)


def per_image(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] in a shape that broadcasts with images [B, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 in `norm` that raises the loss most; 0 for an image whose gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    # Divided by the largest entry first: squares of small gradients would underflow. Then 1 <= length, if it is not 0.
    largest = gradient.abs().flatten(1).amax(1)
    scaled = gradient / per_image(largest.where(largest > 0, 1.0), gradient)
    return scaled / per_image(scaled.flatten(1).norm(dim=1).clamp_min(1.0), gradient)


def into_l2_ball(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """The nearest point of the L2 ball, then cut to [0, 1], which leads no farther away from the image."""
    difference = adversarial - images
    length = difference.flatten(1).norm(dim=1)
    shrink = torch.where(length > eps, eps / length, 1.0)
    return (images + difference * per_image(shrink, images)).clamp(0, 1)
