"""Everything that defines one fine-tuning run, as typed fields with the paper's defaults. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainers.objectives import MethodConfig
from trainers.units import Fraction, Frozen, Length, OfEps

__all__ = [
    "AttackConfig",
    "DataConfig",
    "EvalAttack",
    "EvalConfig",
    "Goal",
    "ModelConfig",
    "OptimizerConfig",
    "TrainConfig",
    "TrialConfig",
]


class ModelConfig(Frozen):
    """Which CLIP to start from."""

    arch: str = Field(default="ViT-B-32-quickgelu", min_length=1, description="open_clip architecture, or tiny-clip")
    pretrained: str = Field(
        default="openai", min_length=1, description="open_clip tag, checkpoint path, or `bundled` (tiny-clip only)"
    )


class AttackConfig(Frozen):
    """The training attack. Paper: PGD, 2 steps of 1/255 inside eps 1/255 (Cui et al. 2026, section 4.1)."""

    name: Literal["pgd"] = Field(default="pgd", description="attack name")
    eps: Fraction = Field(default=1 / 255, ge=0, le=1, description="L-inf radius, pixels in [0, 1]")
    step_size: Length | OfEps = Field(default=OfEps(of_eps=1), description="PGD step, absolute or a multiple of eps")
    steps: int = Field(default=2, ge=1, le=1000, description="number of PGD steps")

    def resolved_step_size(self) -> float:
        """The step in pixels of [0, 1]."""
        return self.step_size.of_eps * self.eps if isinstance(self.step_size, OfEps) else self.step_size


class EvalAttack(Frozen):
    """The attack under which every trial is measured, whatever it trains with."""

    name: Literal["pgd"] = Field(default="pgd", description="attack name")
    eps: tuple[Fraction, ...] = Field(default=(1 / 255,), min_length=1, description="L-inf radii, pixels in [0, 1]")
    step_size: Length | OfEps = Field(default=OfEps(of_eps=0.25), description="PGD step, absolute or a multiple of eps")
    steps: int = Field(default=10, ge=1, le=10000, description="number of PGD steps")

    def resolved_step_size(self, eps: float) -> float:
        """The step in pixels of [0, 1] for one radius."""
        return self.step_size.of_eps * eps if isinstance(self.step_size, OfEps) else self.step_size


class EvalConfig(Frozen):
    """One evaluation: protocol, attack, and how many images of each set."""

    protocol: Literal["strict", "paper"] = Field(
        default="strict", description="strict: fooled if any iterate fools; paper: every image attacked, final iterate"
    )
    attack: EvalAttack = Field(default=EvalAttack(), description="the attack")
    samples: int | None = Field(default=None, ge=1, description="images per set, class-stratified; null = all")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of sample and attack starts, one for all trials")


class DataConfig(Frozen):
    """Datasets of one trial, by the names of `agft data`."""

    train: str = Field(description="dataset to fine-tune on")
    dev: tuple[str, ...] = Field(min_length=1, description="zero-shot sets that the search looks at")


class OptimizerConfig(Frozen):
    """Paper: SGD, momentum 0.9, no weight decay, learning rate 4e-4 (Cui et al. 2026)."""

    name: Literal["sgd", "adamw"] = Field(default="sgd", description="optimizer")
    lr: float = Field(default=4e-4, gt=0, le=10, description="peak learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD momentum (beta1 of AdamW)")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="weight decay")


class TrainConfig(Frozen):
    """Length and arithmetic of the fine-tuning."""

    epochs: int = Field(default=10, ge=1, le=100000, description="number of epochs, each with an evaluation")
    batch_size: int = Field(default=256, ge=1, description="images per update, over all workers together")
    samples_per_epoch: int | None = Field(default=None, ge=1, description="images per epoch; null = the whole set")
    precision: Literal["fp32", "bf16"] = Field(default="fp32", description="encoder; logits and losses are fp32")
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="optimizer")
    warmup: float = Field(default=0.02, ge=0, lt=1, description="fraction of all updates with a linearly rising rate")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of each worker; null = torch's choice")


class Goal(Frozen):
    """What `best` means, with every number resolved: feasible first, then the metric."""

    metric: Literal["robust_accuracy", "clean_accuracy"] = Field(
        default="robust_accuracy", description="what to maximise"
    )
    mode: Literal["max"] = Field(default="max", description="direction")
    at_least: dict[Literal["robust_accuracy", "clean_accuracy"], float] = Field(
        default_factory=dict, description="floors that a feasible epoch reaches"
    )


class TrialConfig(Frozen):
    """One fine-tuning run, complete: same config, same hardware, same numbers."""

    model: ModelConfig = Field(default=ModelConfig(), description="the CLIP to start from")
    method: MethodConfig = Field(description="objective")
    attack: AttackConfig = Field(default=AttackConfig(), description="training attack")
    data: DataConfig = Field(description="datasets")
    train: TrainConfig = Field(default=TrainConfig(), description="length and optimizer")
    evaluate: EvalConfig = Field(default=EvalConfig(), description="fixed evaluation after every epoch")
    goal: Goal = Field(default=Goal(), description="what best means")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of data order and attack starts")
