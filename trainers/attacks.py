"""White-box attacks as pure functions, and the noise they start from.

Threat model (AGFT: Cui et al., CVPR 2026, arXiv:2603.29410, section 3): x' in [0, 1] with ||x' - x|| <= eps, where x is
the image *before* normalisation, at the resolution that the model is handed. The norm is L-infinity, or L2 where that
is asked for. x' is not rounded to 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal, Protocol

import torch
from torch import Tensor

from trainers.config import AttackConfig

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackConfig",
    "LossFn",
    "Norm",
    "PGDAny",
    "ball",
    "noise",
    "pgd",
    "pgd_any",
    "restarted",
    "sign_step",
]

Norm = Literal["linf", "l2"]

LossFn = Callable[[Tensor], Tensor]
"""Images [B, ...] -> per-sample losses [B]; the attack maximises their sum, so batch size cannot matter."""


class Attack(Protocol):
    """What a row of ATTACKS looks like."""

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


_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that carries it."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift right; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014) on int64, which wraps alike on CPU and GPU."""
    x = (x ^ _shifted(x, 30)) * _signed(_FACTORS[0])
    x = (x ^ _shifted(x, 27)) * _signed(_FACTORS[1])
    return x ^ _shifted(x, 31)


def noise(seed: int, epoch: int, restart: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform noise in (-1, 1), fp32 [B, *shape], a pure function of (seed, epoch, restart, sample index, position).

    `index` int64 [B]. No generator: the same image gets the same noise in any batch, on any worker or device.
    Values are odd multiples of 2^-23 less 1, so they are exact in fp32 and symmetric about 0.
    """
    key = torch.zeros((), dtype=torch.int64, device=index.device)
    for part in (seed, epoch, restart):
        key = _mix(key + _signed(part * _GOLDEN + _GOLDEN))
    keys = _mix(_mix(index.to(torch.int64) * _signed(_GOLDEN)) ^ key)
    counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=index.device) * _signed(_GOLDEN)
    bits = _shifted(_mix(keys[:, None] + counter), 41)  # 23 bits
    return ((2 * bits + 1).to(torch.float32) * 2.0**-23 - 1).reshape(len(index), *shape)


def ball(images: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Lower and upper corner of the eps-ball around `images`, cut to [0, 1]."""
    return (images - eps).clamp(0, 1), (images + eps).clamp(0, 1)


def sign_step(adversarial: Tensor, gradient: Tensor, *, step_size: float, lower: Tensor, upper: Tensor) -> Tensor:
    """One projected step: clip(x + step_size * sign(gradient), lower, upper)."""
    return torch.clamp(adversarial + step_size * gradient.sign(), lower, upper)


def _per_image(values: Tensor, like: Tensor) -> Tensor:
    """Values [B] in a shape that broadcasts with images [B, ...]."""
    return values.view(-1, *[1] * (like.ndim - 1))


def _direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 in `norm` that raises the loss most; 0 for an image whose gradient is 0."""
    if norm == "linf":
        return gradient.sign()
    # Divided by the largest entry first: squares of small gradients would underflow. Then 1 <= length, if it is not 0.
    largest = gradient.abs().flatten(1).amax(1)
    scaled = gradient / _per_image(largest.where(largest > 0, 1.0), gradient)
    return scaled / _per_image(scaled.flatten(1).norm(dim=1).clamp_min(1.0), gradient)


def _into_l2_ball(adversarial: Tensor, images: Tensor, eps: float) -> Tensor:
    """The nearest point of the L2 ball, then cut to [0, 1], which leads no farther away from the image."""
    difference = adversarial - images
    length = difference.flatten(1).norm(dim=1)
    shrink = torch.where(length > eps, eps / length, 1.0)
    return (images + difference * _per_image(shrink, images)).clamp(0, 1)


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
        return torch.clamp(x, lower, upper) if norm == "linf" else _into_l2_ball(x, images, eps)

    reach = eps if norm == "linf" else eps / math.sqrt(math.prod(images.shape[1:]))
    adversarial = project(images + reach * start)
    velocity = torch.zeros_like(adversarial)
    for _ in range(steps):
        with torch.enable_grad():
            adversarial.requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss_fn(adversarial).sum(), adversarial)
        velocity = momentum * velocity + _direction(gradient, norm) if momentum else gradient
        velocity = _direction(velocity, norm)
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
        best = torch.where(_per_image(loss > greatest, best), candidate, best)
        greatest = torch.maximum(greatest, loss)
    return best


class PGDAny:
    """What the worst iterate did to every image: `fooled` bool [B], `prediction` int64 [B], `margin` fp32 [B].

    Margin = logit of the label less the largest other logit; `prediction` is that of the iterate with least margin.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.prediction = labels.clone()
        self.margin = torch.full(labels.shape, math.inf, device=labels.device)

    @property
    def fooled(self) -> Tensor:
        return self.prediction != self.labels

    def see(self, logits: Tensor) -> None:
        """Record the logits [B, K] of one more iterate."""
        prediction, margin = predict(logits.detach(), self.labels)
        wrong = prediction != self.labels
        worse = (margin < self.margin) | (wrong & ~self.fooled)
        self.prediction = torch.where(worse, prediction, self.prediction)
        self.margin = torch.where(worse, margin, self.margin)


def predict(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Arg max [B] and margin [B] of `logits` [B, K] (K >= 2)."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return logits.argmax(1), own - others


def pgd_any(
    logits_fn: LossFn, images: Tensor, labels: Tensor, *, eps: float, step_size: float, steps: int, start: Tensor
) -> PGDAny:
    """PGD on the cross-entropy of `logits_fn` (images -> [B, K]); an image is fooled if any iterate fools it.

    The start and the final iterate count too, so `steps` steps give `steps` + 1 chances.
    """
    result = PGDAny(labels)

    def loss_fn(candidates: Tensor) -> Tensor:
        logits = logits_fn(candidates)
        result.see(logits)
        return torch.nn.functional.cross_entropy(logits, labels, reduction="none")

    final = pgd(loss_fn, images, eps=eps, step_size=step_size, steps=steps, start=start)
    with torch.no_grad():
        result.see(logits_fn(final))
    return result


ATTACKS: Mapping[str, Attack] = {"pgd": pgd}
