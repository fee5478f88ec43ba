"""A training attack: PGD whose steps halve."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from trainers.attacks import LossFn, pgd


def toy_halving(
    loss_fn: LossFn, images: Tensor, *, eps: float, step_size: float, steps: int, start: Tensor, **more: Any
) -> Tensor:
    """As `trainers.attacks.Attack`; each step is PGD's from the image that the last one left, half as long."""
    found = pgd(loss_fn, images, eps=eps, step_size=step_size, steps=0, start=start, **more)
    if eps == 0:
        return found
    reach = eps if more.get("norm", "linf") == "linf" else eps / images[0].numel() ** 0.5
    for step in range(steps):
        length = step_size / 2**step
        found = pgd(loss_fn, images, eps=eps, step_size=length, steps=1, start=(found - images) / reach, **more)
    return found
