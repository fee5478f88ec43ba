"""TeCoA: adversarial fine-tuning on the cross-entropy with the text embeddings of the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainers.objectives.base import Batch, Context, Losses, ScoredObjective, perturbed
from trainers.schema.presets import FAMILY, PGD2, SGD

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.model.robust import RobustCLIP
    from trainers.schema.training import AttackConfig


class TeCoA(ScoredObjective):
    """Text-guided contrastive adversarial training. Mao et al., ICLR 2023, arXiv:2212.07016.

        L = CE(y, p(x_adv; s)),   p(x; s) = softmax(s cos(x))

    cos(x) [K] are the cosines of the image's and the classes' embeddings, s is `logit_scale`, y the label. The attack
    maximises L. A mean over the batch.

    Deviations: the official code (cvlab-columbia/ZSRobust4FoundationModel) leaves the weight gradients of the attack
    in place and adds them, unscaled, to the update's; it encodes the prompts again in every forward; it runs attack,
    softmax and loss under fp16 autocast with a mean over the batch. Here the attack writes no weight gradient, the
    embeddings are fixed, losses are fp32 and the attack's loss is a sum. It also mixes the result with CLIP's weights
    (`--mix_alpha`), which is not part of the objective.
    """

    title: ClassVar[str] = "TeCoA"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Its code defaults to lr 1e-7; AGFT's and TGA-ZSR's authors run it with 1e-5.
        "tecoa-paper": {
            "method": {"name": "tecoa", "logit_scale": {"of_model": 1.0}},
            "attack": PGD2,
            "train": {**FAMILY, "optimizer": {**SGD, "lr": 1e-5}, "official_schedule": "open_clip"},
        }
    }
    search_space: ClassVar[Mapping[str, Any]] = {"method.logit_scale": {"of_model": {"low": 0.5, "high": 2.0}}}

    name: Literal["tecoa"] = Field(default="tecoa", description="method name")

    def loss(self, model: RobustCLIP, batch: Batch, attack: AttackConfig, *, context: Context) -> Losses:
        """See `Objective.loss`. Parts: label."""
        import torch

        scale = self.resolved_logit_scale(model)

        def label(images: Tensor) -> Tensor:
            logits = model.logits(model.embed(images), context.class_embeddings, scale)
            return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")

        loss = label(perturbed(model, label, batch, attack, context))
        return Losses.of(loss, {"label": loss}, context)
