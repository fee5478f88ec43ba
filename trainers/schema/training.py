"""Everything that defines one fine-tuning run, as typed fields with the paper's defaults. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from trainers.schema.named import In
from trainers.schema.units import Fraction, Frozen, OfEps, Several, linf_length
from trainers.table import Table

PLACES = ("s3:", "hf-hub:", "local-dir:")
WEIGHT_FILES = (".safetensors", ".pt", ".pth", ".ckpt", ".bin", ".tar")


def is_weight_file(text: str) -> bool:
    """Is it called like a file of weights?"""
    return text.lower().endswith(WEIGHT_FILES)


class ModelConfig(Frozen):
    """Which CLIP to start from."""

    arch: str = Field(default="ViT-B-32-quickgelu", min_length=1, description="open_clip architecture, or tiny-clip")
    pretrained: str = Field(
        default="openai",
        min_length=1,
        description="open_clip tag; `bundled` (tiny-clip only); a file or folder; s3://BUCKET/KEY (with a closing / a "
        "folder); hf-hub:ORG/NAME; local-dir:FOLDER",
    )

    def names_a_place(self) -> bool:
        """Does `pretrained` say where the weights are, instead of naming a tag of open_clip's?"""
        text = self.pretrained
        return text.startswith(PLACES) or "/" in text or is_weight_file(text) or Path(text).is_dir()


ATTACKS: Table[Any] = Table("training attack", "agft.training_attacks", {"pgd": "trainers.attacks.projected:pgd"})
"""Training attacks, functions as `trainers.attacks.projected.Attack` says. Imported when one is looked up."""


class AttackConfig(Frozen):
    """The training attack. Paper: PGD, 2 steps of 1/255 inside eps 1/255 (Cui et al. 2026, section 4.1)."""

    name: Annotated[str, In(ATTACKS)] = Field(default="pgd", description="attack name")
    norm: Literal["linf", "l2"] = Field(default="linf", description="norm of the ball around the image")
    eps: Annotated[Fraction, Field(ge=0, le=1000)] = Field(
        default=1 / 255, description="radius in the norm, pixels in [0, 1]; at most 1 in linf"
    )
    step_size: Annotated[Fraction, Field(gt=0, le=1000)] | OfEps = Field(
        default=OfEps(of_eps=1), description="PGD step in the norm, absolute or a multiple of eps"
    )
    steps: int = Field(default=2, ge=1, le=1000, description="number of PGD steps")
    restarts: int = Field(default=1, ge=1, le=100, description="random starts; the worst final iterate is kept")
    momentum: float = Field(default=0.0, ge=0, lt=1, description="momentum of the attack's steps (FARE: 0.9)")

    @field_validator("eps", "step_size", mode="after")
    @classmethod
    def _inside_the_pixel_cube(cls, value: float | OfEps, read: ValidationInfo) -> float | OfEps:
        return linf_length(value) if read.data.get("norm") == "linf" and not isinstance(value, OfEps) else value

    def resolved_step_size(self) -> float:
        """The step in pixels of [0, 1]."""
        return self.step_size.of_eps * self.eps if isinstance(self.step_size, OfEps) else self.step_size


class DataConfig(Frozen):
    """What one trial learns from, by the names of `agft data`; what it is measured on, its evaluation says."""

    train: str = Field(description="dataset to fine-tune on")


class OptimizerConfig(Frozen):
    """Paper: SGD, momentum 0.9, no weight decay, learning rate 4e-4 (Cui et al. 2026)."""

    name: Literal["sgd", "adamw"] = Field(default="sgd", description="optimizer")
    lr: float = Field(default=4e-4, gt=0, le=10, description="peak learning rate")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD momentum (beta1 of AdamW)")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="beta2 of AdamW; the official AGFT code's is 0.95")
    weight_decay: float = Field(default=0.0, ge=0, le=1, description="weight decay")


class Steps(Frozen):
    """A length in updates, instead of a fraction of all updates."""

    steps: int = Field(ge=0, description="number of updates")


class Trainable(Frozen):
    """Which part of the image encoder learns; the rest keeps CLIP's weights. Blocks: of a ViT; stages of a ResNet."""

    part: Literal["all", "first_blocks", "last_blocks", "layer_norms", "visual_prompt"] = Field(
        default="all", description="all | first_blocks | last_blocks | layer_norms | visual_prompt (a border of pixels)"
    )
    blocks: int = Field(default=4, ge=1, description="how many, for first_blocks (with the stem) and last_blocks")
    prompt_width: int = Field(default=30, ge=1, description="border of visual_prompt, pixels of the model's input")


class TrainConfig(Frozen):
    """Length and arithmetic of the fine-tuning."""

    epochs: int = Field(default=10, ge=1, le=100000, description="number of epochs, each with an evaluation")
    batch_size: int = Field(default=256, ge=1, description="images per update, over all workers together")
    accumulation: int = Field(default=1, ge=1, description="parts that a worker's share of a batch is computed in")
    samples_per_epoch: int | None = Field(default=None, ge=1, description="images per epoch; null = the whole set")
    checkpoint_minutes: float | None = Field(
        default=15, gt=0, description="inside an epoch, a state to go on from so often; null = only between epochs"
    )
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        default="auto",
        description="encoder's autocast, or its products' rounding (tf32); auto = bf16 where the GPU has it, else "
        "fp32. Weights, logits and losses are fp32; fp16 scales its gradients",
    )
    deterministic: bool = Field(
        default=False, description="on a GPU, kernels that add in one order: the same bits again, for more time"
    )
    optimizer: OptimizerConfig = Field(default=OptimizerConfig(), description="optimizer")
    clip_grad_norm: float | None = Field(default=None, gt=0, description="largest L2 norm of the gradient; null = any")
    warmup: Annotated[float, Field(ge=0, lt=1)] | Steps = Field(
        default=0.02, description="linearly rising rate: a fraction of all updates, or {steps: 1000}"
    )
    official_schedule: Literal["timm", "open_clip"] | None = Field(
        default=None,
        description="the official codes' schedules: timm (AGFT; its first update has rate 0), open_clip (TeCoA, FARE)",
    )
    trainable: Trainable = Field(default=Trainable(), description="part of the image encoder that learns")
    ema: float | None = Field(
        default=None, gt=0, lt=1, description="decay of averaged weights, which are then measured"
    )
    activation_checkpointing: bool = Field(default=False, description="recompute activations: less memory, more time")
    compile: bool = Field(default=False, description="torch.compile the encoder; says so and goes on where it cannot")
    teacher_cache: bool = Field(default=True, description="frozen clean embeddings once, shared by all trials")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of each worker; null = torch's choice")


Metric = Literal["robust_accuracy", "clean_accuracy", "robust_calibration", "clean_calibration"]
"""What a goal may speak of, each in [0, 1] and the more the better. A calibration is 1 less the expected calibration
error of the probabilities at the model's own scale."""
AccuracyMetric = Literal["robust_accuracy", "clean_accuracy"]
ACCURACIES: tuple[AccuracyMetric, ...] = ("clean_accuracy", "robust_accuracy")
CALIBRATIONS: tuple[Metric, ...] = ("clean_calibration", "robust_calibration")


class Goal(Frozen):
    """What `best` means, with every number resolved: feasible first, then the value.

    With several `metrics` the value is their mean: no other epoch of the trial can be better in all of them than the
    one that it chooses, so a trial stands in a Pareto front with numbers that one epoch, its checkpoint's, really had.
    """

    metric: Metric = Field(default="robust_accuracy", description="what to maximise")
    metrics: Several[Metric] = Field(default=(), description="several: a Pareto front; `metric` is the first")
    mode: Literal["max"] = Field(default="max", description="direction")
    at_least: dict[Metric, float] = Field(default_factory=dict, description="floors that a feasible epoch reaches")

    @property
    def names(self) -> tuple[Metric, ...]:
        """What is maximised, one or more."""
        return self.metrics or (self.metric,)

    def value(self, of: Callable[[Metric], float]) -> float:
        """The number that is compared, given each metric's: the metric itself, or the mean of several."""
        return sum(float(of(name)) for name in self.names) / len(self.names)
