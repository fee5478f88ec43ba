"""What every method is to the training loop. Imports no torch: the schema of a study is checked without it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainers.schema.units import Frozen, OfModel

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.model.robust import RobustCLIP
    from trainers.schema.training import AttackConfig


FP16_FACTOR = 128.0


@dataclass(frozen=True)
class Batch:
    """One rank's part of a global batch.

    `images` fp32 [B, 3, H, W] in [0, 1]; `labels` int64 [B]; `index` int64 [B], positions in the dataset;
    `teacher_embeddings` fp32 [B, D], the frozen encoder's raw embeddings of the clean images, or None.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    teacher_embeddings: Tensor | None = None


@dataclass(frozen=True)
class Context:
    """What is fixed during an epoch: class embeddings [K, D] of unit norm, keys of the noise, the global batch size.

    `teacher`, the frozen encoder, and `complement_embeddings` [K, D], unit embeddings of the prompts that deny a class:
    where the method asks for them (`Objective.needs_teacher`, `Objective.complement_template`).
    """

    class_embeddings: Tensor
    seed: int
    epoch: int
    global_batch: int
    teacher: RobustCLIP | None = None
    complement_embeddings: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """Sums over this rank's samples divided by the *global* batch size: ranks add up to the mean over the batch.

    `total` is what is differentiated; `parts` are detached scalars by name, for the record.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def of(cls, total: Tensor, parts: Mapping[str, Tensor], context: Context) -> Losses:
        """From per-sample losses [B]."""
        batch = context.global_batch
        return cls(total.sum() / batch, {name: part.detach().sum() / batch for name, part in parts.items()})


class Objective(Frozen):
    """A fine-tuning method: its hyperparameters are its fields.

    It declares what it asks of the frozen teacher. `teacher_input`: `none`; `clean` embeddings, computed once and
    handed over in the batch; `adversarial`, a frozen encoder in the context. `teacher_output`: `embedding` or `tokens`.

    `title`: its name in texts; "": as in files. `presets`: published recipes by name, as parts of a study file.
    `search_space`: what a first study file of the method searches, beside the learning rate. `other_form`: the fields
    that make another form of the method than its paper's, and what that form is called; their defaults are the paper's.
    Fields that are not among them are its hyperparameters, or select a form that the paper has too.
    """

    teacher_input: ClassVar[Literal["none", "clean", "adversarial"]] = "none"
    teacher_output: ClassVar[Literal["embedding", "tokens"]] = "embedding"
    title: ClassVar[str] = ""
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    search_space: ClassVar[Mapping[str, Any]] = {}
    other_form: ClassVar[tuple[str, tuple[str, ...]]] = ("", ())

    name: str

    @property
    def needs_teacher(self) -> bool:
        """Whether `context.teacher` must be there: its input is made in the loss, or its output too large to keep."""
        return self.teacher_input == "adversarial" or self.teacher_output == "tokens"

    @property
    def needs_clean_embeddings(self) -> bool:
        """Whether `batch.teacher_embeddings` must be there."""
        return self.teacher_input == "clean" and self.teacher_output == "embedding"

    @property
    def complement_template(self) -> str | None:
        """The prompt that denies a class, `{}` its name, if `context.complement_embeddings` must be there."""
        return None

    def loss(self, model: RobustCLIP, batch: Batch, attack: AttackConfig, *, context: Context) -> Losses:
        """The loss of one batch, ready for `backward()`. Attacks the images itself, through `perturbed`."""
        raise NotImplementedError


class ScoredObjective(Objective):
    """A method that scores images against the classes, at a scale that it can choose for training.

    Evaluation is at the model's own scale, whatever this is.
    """

    logit_scale: Annotated[float, Field(gt=0)] | OfModel = Field(
        default=OfModel(of_model=1.0),
        description="logit scale in training: absolute, or {of_model: multiple of the model's own}",
    )

    def resolved_logit_scale(self, model: RobustCLIP) -> float:
        """The scale as a number."""
        scale = self.logit_scale
        return scale.of_model * model.logit_scale if isinstance(scale, OfModel) else scale


def perturbed(
    model: RobustCLIP,
    loss_fn: Callable[[Tensor], Tensor],
    batch: Batch,
    attack: AttackConfig,
    context: Context,
) -> Tensor:
    """The batch's images after the training attack on `loss_fn` (images [B, ...] -> per-sample losses [B]).

    The attack runs on the bare model in eval mode with the weights' gradients off, so that only the image gradient is
    computed; modes and `requires_grad` flags are restored, also on an error. Noise: (seed, epoch, restart, sample
    index). With several restarts, each image keeps its final iterate of greatest loss.
    """
    from trainers.attacks import ATTACKS, restarted
    from trainers.draws import noise

    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # In fp16 a gradient below 6e-8 is 0, and a pixel whose gradient is 0 is not attacked: robustness is overstated.
    # A step uses only the direction of an image's gradient, so a factor on the loss changes nothing else.
    attacked = (lambda x: FP16_FACTOR * loss_fn(x)) if model.precision == "fp16" else loss_fn

    def run(restart: int) -> Tensor:
        return ATTACKS[attack.name](
            attacked,
            batch.images,
            eps=attack.eps,
            step_size=attack.resolved_step_size(),
            steps=attack.steps,
            start=noise(context.seed, context.epoch, restart, batch.index, tuple(batch.images.shape[1:])),
            norm=attack.norm,
            momentum=attack.momentum,
        )

    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        return restarted(run, attacked, attack.restarts)
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
