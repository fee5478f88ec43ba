"""What every method is to the training loop. Imports no torch: the schema of a study is checked without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from trainers.units import Frozen

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.config import AttackConfig
    from trainers.model import RobustCLIP

__all__ = ["Batch", "Context", "Losses", "Objective", "perturbed"]


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
    """What is fixed during an epoch: class embeddings [K, D] of unit norm, keys of the noise, the global batch size."""

    class_embeddings: Tensor
    seed: int
    epoch: int
    global_batch: int
    teacher: RobustCLIP | None = None


@dataclass(frozen=True)
class Losses:
    """Sums over this rank's samples divided by the *global* batch size: ranks add up to the mean over the batch.

    `total` is what is differentiated; `parts` are detached scalars by name, for the record.
    """

    total: Tensor
    parts: dict[str, Tensor] = field(default_factory=dict)


class Objective(Frozen):
    """A fine-tuning method: its hyperparameters are its fields.

    It declares what it asks of the frozen teacher. `teacher_input`: `none`; `clean` embeddings, computed once and
    handed over in the batch; `adversarial`, a frozen encoder in the context. `teacher_output`: `embedding` or `tokens`.
    """

    teacher_input: ClassVar[Literal["none", "clean", "adversarial"]] = "none"
    teacher_output: ClassVar[Literal["embedding", "tokens"]] = "embedding"

    name: str

    def loss(self, model: RobustCLIP, batch: Batch, attack: AttackConfig, *, context: Context) -> Losses:
        """The loss of one batch, ready for `backward()`. Attacks the images itself, through `perturbed`."""
        raise NotImplementedError


def perturbed(
    model: RobustCLIP,
    loss_fn: Callable[[Tensor], Tensor],
    batch: Batch,
    attack: AttackConfig,
    context: Context,
) -> Tensor:
    """The batch's images after the training attack on `loss_fn` (images [B, ...] -> per-sample losses [B]).

    The attack runs on the bare model in eval mode with the weights' gradients off, so that only the image gradient is
    computed; modes and `requires_grad` flags are restored, also on an error. Noise: (seed, epoch, 0, sample index).
    """
    from trainers.attacks import ATTACKS, noise

    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    start = noise(context.seed, context.epoch, 0, batch.index, tuple(batch.images.shape[1:]))
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        return ATTACKS[attack.name](
            loss_fn,
            batch.images,
            eps=attack.eps,
            step_size=attack.resolved_step_size(),
            steps=attack.steps,
            start=start,
        )
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module, training in modes:
            module.training = training
