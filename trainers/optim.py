"""Optimizers and the learning-rate schedule, a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from trainers.config import OptimizerConfig

__all__ = ["OptimizerConfig", "build_optimizer", "learning_rate"]


def build_optimizer(config: OptimizerConfig, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """SGD with momentum (the paper's), or AdamW with beta1 = momentum and the official code's beta2 = 0.95."""
    trainable = [parameter for parameter in parameters if parameter.requires_grad]
    if config.name == "sgd":
        return torch.optim.SGD(
            trainable, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, foreach=False
        )
    return torch.optim.AdamW(
        trainable, lr=config.lr, betas=(config.momentum, 0.95), weight_decay=config.weight_decay, foreach=False
    )


def learning_rate(step: int, total_steps: int, base: float, warmup_fraction: float) -> float:
    """The rate of update `step` (0-based) of `total_steps`: linear warm-up, then half a cosine towards 0.

    With W = round(warmup_fraction * total_steps):
        step <  W:  base * (step + 1) / (W + 1)
        step >= W:  base * (1 + cos(pi * (step - W) / (total_steps - W))) / 2
    Never 0 on a step that is taken. The official schedule (timm's cosine, 1000 warm-up iterations of 50,050) differs:
    its first update has rate 0 and is wasted, and its cosine counts from step 0, so that the rate jumps to 0.99901
    base at the end of the warm-up. It counts iterations, so it changes with the number of GPUs; this one does not.
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step must be in [0, {total_steps}); got {step}")
    warmup = min(round(warmup_fraction * total_steps), total_steps - 1)
    if step < warmup:
        return base * (step + 1) / (warmup + 1)
    return base * (1 + math.cos(math.pi * (step - warmup) / (total_steps - warmup))) / 2
