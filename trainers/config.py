"""Everything that defines one fine-tuning run, as typed fields with the paper's defaults. Imports no torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from trainers.objectives import MethodConfig
from trainers.units import Fraction, Frozen, OfEps

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

    arch: str = Field("ViT-B-32-quickgelu", min_length=1, description="open_clip architecture name, or tiny-clip")
    pretrained: str = Field(
        "openai", min_length=1, description="open_clip tag, path of a checkpoint file, or `bundled` (tiny-clip only)"
    )


class AttackConfig(Frozen):
    """The training attack. Paper: PGD, 2 steps of 1/255 inside eps 1/255 (Cui et al. 2026, section 4.1)."""

    name: Literal["pgd"] = Field("pgd", description="attack name")
    eps: Fraction = Field(1 / 255, ge=0, le=1, description="L-inf radius, pixels in [0, 1]")
    step_size: Annotated[Fraction, Field(gt=0, le=1)] | OfEps = Field(OfEps(of_eps=1), description="PGD step, absolute or a multiple of eps")
    steps: int = Field(2, ge=1, le=1000, description="number of PGD steps")

    def resolved_step_size(self) -> float:
        """The step in pixels of [0, 1]."""
        return self.step_size.of_eps * self.eps if isinstance(self.step_size, OfEps) else self.step_size


class EvalAttack(Frozen):
    """The attack under which every trial is measured, whatever it trains with."""

    name: Literal["pgd"] = Field("pgd", description="attack name")
    eps: tuple[Fraction, ...] = Field((1 / 255,), min_length=1, description="L-inf radii, pixels in [0, 1]")
    step_size: Annotated[Fraction, Field(gt=0, le=1)] | OfEps = Field(OfEps(of_eps=0.25), description="PGD step, absolute or a multiple of eps")
    steps: int = Field(10, ge=1, le=10000, description="number of PGD steps")

    def resolved_step_size(self, eps: float) -> float:
        """The step in pixels of [0, 1] for one radius."""
        return self.step_size.of_eps * eps if isinstance(self.step_size, OfEps) else self.step_size


class EvalConfig(Frozen):
    """One evaluation: protocol, attack, and how many images of each set."""

    protocol: Literal["strict", "paper"] = Field(
        "strict", description="strict: fooled if any iterate fools; paper: every image attacked, final iterate"
    )
    attack: EvalAttack = Field(default_factory=EvalAttack, description="the attack")
    samples: int | None = Field(None, ge=1, description="images per set, class-stratified; null = all")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of the sample and the attack's starts, same for all trials")


class DataConfig(Frozen):
    """Datasets of one trial, by the names of `agft data`."""

    train: str = Field(description="dataset to fine-tune on")
    dev: tuple[str, ...] = Field(min_length=1, description="zero-shot sets that the search looks at")


class OptimizerConfig(Frozen):
    """Paper: SGD, momentum 0.9, no weight decay, learning rate 4e-4 (Cui et al. 2026)."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="optimizer")
    lr: float = Field(4e-4, gt=0, le=10, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum (beta1 of AdamW)")
    weight_decay: float = Field(0.0, ge=0, le=1, description="weight decay")


class TrainConfig(Frozen):
    """Length and arithmetic of the fine-tuning."""

    epochs: int = Field(10, ge=1, le=100000, description="number of epochs; every epoch ends with an evaluation")
    batch_size: int = Field(256, ge=1, description="images per update, over all workers together")
    samples_per_epoch: int | None = Field(None, ge=1, description="images per epoch; null = the whole set")
    precision: Literal["fp32", "bf16"] = Field("fp32", description="encoder arithmetic; logits and losses are fp32")
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig, description="optimizer")
    warmup: float = Field(0.02, ge=0, lt=1, description="fraction of all updates with a linearly rising rate")
    threads: int | None = Field(None, ge=1, description="CPU threads of each worker; null = torch's choice")


class Goal(Frozen):
    """What `best` means, with every number resolved: feasible first, then the metric."""

    metric: Literal["robust_accuracy", "clean_accuracy"] = Field("robust_accuracy", description="metric to maximise")
    mode: Literal["max"] = Field("max", description="direction")
    at_least: dict[Literal["robust_accuracy", "clean_accuracy"], float] = Field(
        default_factory=dict, description="floors that a feasible epoch reaches"
    )


class TrialConfig(Frozen):
    """One fine-tuning run, complete: same config, same hardware, same numbers."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="the CLIP to start from")
    method: MethodConfig = Field(description="objective")
    attack: AttackConfig = Field(default_factory=AttackConfig, description="training attack")
    data: DataConfig = Field(description="datasets")
    train: TrainConfig = Field(default_factory=TrainConfig, description="length and optimizer")
    evaluate: EvalConfig = Field(default_factory=EvalConfig, description="fixed evaluation after every epoch")
    goal: Goal = Field(default_factory=Goal, description="what best means")
    seed: int = Field(0, ge=0, lt=2**31, description="seed of data order and attack starts")
