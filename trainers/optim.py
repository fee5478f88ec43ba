"""Optimizers and the learning-rate schedule, a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn

from trainers.config import OptimizerConfig, Steps

__all__ = ["OptimizerConfig", "build_optimizer", "learning_rate"]


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum (the paper's), or AdamW with beta1 = momentum."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(trainable, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return torch.optim.AdamW(
        trainable, lr=config.lr, betas=(config.momentum, config.beta2), weight_decay=config.weight_decay
    )


def learning_rate(
    step: int,
    total_steps: int,
    base: float,
    warmup: float | Steps,
    official: Literal["timm", "open_clip"] | None = None,
) -> float:
    """The rate of update `step` (0-based) of `total_steps`: linear warm-up of W updates, then half a cosine towards 0.

        step <  W:  base * (step + 1) / (W + 1)
        step >= W:  base * (1 + cos(pi * (step - W) / (total_steps - W))) / 2
    with W given, or round(fraction * total_steps). Never 0 on an update that is taken; in fractions it does not change
    with the number of GPUs. The official codes count iterations, with these formulas:
    `timm` (AGFT, CosineLRScheduler without prefix): base * step / W, so that the first update has rate 0 and is wasted;
    then base * (1 + cos(pi * step / total_steps)) / 2, which jumps to 0.99901 base at step 1000 of 50,050.
    `open_clip` (TeCoA, FARE): base * (step + 1) / W, then the cosine of step - W as above.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must be in [0, {total_steps}); got {step}")
    length = warmup.steps if isinstance(warmup, Steps) else round(warmup * total_steps)
    length = min(length, total_steps - 1)
    if step < length:
        rising = {None: (step + 1) / (length + 1), "timm": step / length, "open_clip": (step + 1) / length}
        return base * rising[official]
    start = 0 if official == "timm" else length
    return base * (1 + math.cos(math.pi * (step - start) / (total_steps - start))) / 2
