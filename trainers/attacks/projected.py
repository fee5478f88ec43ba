"""Projected gradient ascent as pure functions, the first of the training attacks.

Threat model (AGFT: Cui et al., CVPR 2026, arXiv:2603.29410, section 3): x' in [0, 1] with ||x' - x|| <= eps, where x is
the image *before* normalisation, at the resolution that the model is handed. The norm is L-infinity, or L2 where that
is asked for. x' is not rounded to 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from trainers.attacks.geometry import Norm, ball, direction, into_l2_ball, per_image

LossFn = Callable[[Tensor], Tensor]
"""Images [B, ...] -> per-sample losses [B]; the attack maximises their sum, so batch size cannot matter."""


class Attack(Protocol):
    """What a row of `trainers.schema.training.ATTACKS` looks like."""

    def __call__(
        self,
        loss_fn: LossFn,
        images: Tensor,
        *,
        eps: float,
        step_size: float,
        steps: int,
        start: Tensor,
        norm: Norm = "linf",
        momentum: float = 0.0,
    ) -> Tensor: ...


def pgd(
    loss_fn: LossFn,
    images: Tensor,
    *,
    eps: float,
    step_size: float,
    steps: int,
    start: Tensor,
    norm: Norm = "linf",
    momentum: float = 0.0,
) -> Tensor:
    """Projected gradient ascent (Madry et al. 2018; AGFT eq. 2), final iterate, detached.

        x_0 = clip(x + eps * start);   x_{k+1} = clip(x_k + step_size * direction(grad sum_i loss_i(x_k)))

    with clip onto the ball cut to [0, 1]. `images` [B, ...] in [0, 1]; `start` has their shape, in [-1, 1] (`noise`).
    `linf`: the direction is the sign. `l2`: the gradient divided by its length, image by image; the start is divided by
    the root of the number of pixels, so it is uniform in the cube inscribed in the ball.
    `momentum` m as in FARE's official code: v_{k+1} = direction(m * v_k + direction(gradient)), v_0 = 0, replaces the
    direction. In linf, with m < 1, that is the gradient's sign wherever the gradient is not 0, and the last sign there.
    `loss_fn` sees every iterate but the last. Weights, model mode and random state are left alone: only the gradient
    with respect to the images is taken, and `.grad` is written nowhere. eps 0 is the identity.
    Deviation from the official code: it averages the loss over the batch, under fp16 autocast without loss scaling,
    so that small gradients vanish and robustness is overstated; here the loss is summed.
    """
    images = images.detach()
    if eps == 0:
        return images.clone()
    lower, upper = ball(images, eps)

    def project(x: Tensor) -> Tensor:
        return torch.clamp(x, lower, upper) if norm == "linf" else into_l2_ball(x, images, eps)

    reach = eps if norm == "linf" else eps / math.sqrt(math.prod(images.shape[1:]))
    adversarial = project(images + reach * start)
    velocity = torch.zeros_like(adversarial)
    for _ in range(steps):
        with torch.enable_grad():
            adversarial.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss_fn(adversarial).sum(), adversarial)
        velocity = momentum * velocity + direction(gradient, norm) if momentum else gradient
        velocity = direction(velocity, norm)
        adversarial = project(adversarial.detach() + step_size * velocity)
    return adversarial.detach()


def restarted(run: Callable[[int], Tensor], loss_fn: LossFn, restarts: int) -> Tensor:
    """Of the results `run(0)`, ..., `run(restarts - 1)` [B, ...], each image's one of greatest loss; first of equals.

    One more forward for every restart, unless there is only one.
    """
    best = run(0)
    if restarts == 1:
        return best
    with torch.no_grad():
        greatest = loss_fn(best)
    for number in range(1, restarts):
        candidate = run(number)
        with torch.no_grad():
            loss = loss_fn(candidate)
        best = torch.where(per_image(loss > greatest, best), candidate, best)
        greatest = torch.maximum(greatest, loss)
    return best
