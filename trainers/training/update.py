"""One optimizer update: gradients of several parts and ranks, loss scaling, clipping, the step, the moving average."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from trainers import distributed
from trainers.objectives import Losses
from trainers.schema.training import OptimizerConfig, Steps, TrainConfig

# Optimizers and the learning-rate schedule, a pure function of the step.


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


SMALLEST_LOSS_SCALE = 2.0**-10  # fp16: an update that overflows below this will not recover


class NonFinite(RuntimeError):
    """Loss or gradient is infinite or not a number. The message gives the update, the parts of the loss, the device."""


@dataclass
class Updater:
    """The state that an update changes besides the model's own: moments, loss scale, averaged weights, the count."""

    config: TrainConfig
    parameters: Sequence[nn.Parameter]
    total_steps: int
    device: torch.device

    def __post_init__(self) -> None:
        self.optimizer = build_optimizer(self.config.optimizer, self.parameters)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.config.precision == "fp16")
        self.averages = [p.detach().clone() for p in self.parameters] if self.config.ema is not None else []
        self.step = 0
        self.skipped = 0
        self._numbers: dict[str, Tensor] = {}

    @property
    def lr(self) -> float:
        """The rate of the coming update."""
        train = self.config
        return learning_rate(
            self.step, self.total_steps, train.optimizer.lr, train.warmup, official=train.official_schedule
        )

    def begin(self) -> None:
        """Forget gradients and losses."""
        self.optimizer.zero_grad(set_to_none=True)
        self._numbers = {}

    def add(self, losses: Losses, weight: float = 1.0) -> None:
        """One part of the batch: its gradients and its losses are added to those before."""
        self.scaler.scale(losses.total * weight).backward()
        for name, value in {"loss": losses.total.detach(), **losses.parts}.items():
            self._numbers[name] = self._numbers.get(name, 0.0) + value * weight

    def finish(self) -> dict[str, float]:
        """The update; returns loss, parts and `grad_norm` (before clipping), the same on every rank.

        Raises `NonFinite`. With fp16 an overflowing gradient skips the update and halves the loss scale, as it should;
        the schedule counts the update all the same.
        """
        self._sum_over_ranks()
        lr = self.lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = nn.utils.get_total_norm(gradients)
        values = dict(zip(self._numbers, torch.stack([*self._numbers.values()]).tolist(), strict=True))
        values["grad_norm"] = float(norm)
        self._check(values, lr)
        if self.config.clip_grad_norm is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.clip_grad_norm, norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if math.isfinite(values["grad_norm"]):
            self._average()
        else:
            self.skipped += 1
        self.step += 1
        return values

    def _sum_over_ranks(self) -> None:
        """Gradients, loss and parts, in one message, so that all ranks see the same numbers."""
        if distributed.world_size() == 1:
            return
        numbers = torch.stack([*self._numbers.values()])
        touched = [parameter for parameter in self.parameters if parameter.grad is not None]
        flat = torch.cat([numbers, *(p.grad.reshape(-1) for p in touched)])  # type: ignore[union-attr]
        numbers, *summed = distributed.all_reduce_sum(flat).split([len(numbers), *(p.numel() for p in touched)])
        self._numbers = dict(zip(self._numbers, numbers, strict=True))
        for parameter, gradient in zip(touched, summed, strict=True):
            parameter.grad = gradient.view_as(parameter)

    def _check(self, values: dict[str, float], lr: float) -> None:
        loss_is_fine = all(math.isfinite(value) for name, value in values.items() if name != "grad_norm")
        scale = self.scaler.get_scale()
        may_overflow = self.scaler.is_enabled() and scale > SMALLEST_LOSS_SCALE
        if loss_is_fine and (may_overflow or math.isfinite(values["grad_norm"])):
            return
        parts = ", ".join(f"{name} {value:g}" for name, value in values.items())
        what = "gradient" if loss_is_fine else "loss"
        scaled = f", loss scale {scale:g}" if self.scaler.is_enabled() else ""
        raise NonFinite(f"update {self.step}: the {what} is not finite ({parts}) on {self.device}, lr {lr:g}{scaled}")

    def _average(self) -> None:
        """Averages follow the weights: a_t = d a_(t-1) + (1 - d) w_t with d = min(decay, (1 + t) / (10 + t)).

        The smaller d of the first updates (as in TensorFlow's moving average) forgets the start in a short run too.
        """
        if self.config.ema is None:
            return
        decay = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            for average, parameter in zip(self.averages, self.parameters, strict=True):
                average.lerp_(parameter.detach(), 1 - decay)

    def tensors(self) -> dict[str, Tensor]:
        """Moments and averages by name, for a state file."""
        found = {
            f"optimizer/{number}/{name}": value
            for number, moments in self.optimizer.state_dict()["state"].items()
            for name, value in moments.items()
            if isinstance(value, Tensor)
        }
        return found | {f"average/{number}": average for number, average in enumerate(self.averages)}

    def numbers(self) -> dict[str, Any]:
        """What is not a tensor, for a state file."""
        return {"step": self.step, "skipped": self.skipped, "scaler": self.scaler.state_dict()}

    def load(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Back from `tensors` and `numbers` of the same configuration."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            kind, number, *name = key.split("/")
            if kind == "optimizer":
                moments.setdefault(int(number), {})[name[0]] = value
            else:
                self.averages[int(number)].copy_(value)
        self.optimizer.load_state_dict({"state": moments, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self.step, self.skipped = numbers["step"], numbers["skipped"]
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(numbers["scaler"])
