"""PMG-AFT: TeCoA, held near the frozen CLIP's predictions on the same attacked image and near its own clean ones."""

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


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class PMGAFT(ScoredObjective):
    """Pre-trained model guided adversarial fine-tuning. Wang et al., CVPR 2024, arXiv:2401.04350.

        L = CE(y, p(x_adv)) + a KL(p_0(x_adv) || p(x_adv)) + b KL(p(x) || p(x_adv)),   p(x) = softmax(s cos(x))

    cos(x) [K] are the cosines of the image's and the classes' embeddings, p_0 is the frozen CLIP, fed the same attacked
    image, s is `logit_scale`, y the label; gradients flow through p(x) as well. Every term is a sum over classes and a
    mean over the batch; one of weight 0 is not computed. The attack maximises the first term.

    Deviations: the official code (serendipity1122/Pre-trained-Model-Guided-Fine-Tuning-...) normalises the text
    embeddings once more after multiplying them by the scale, so that everything is at scale 1 (`logit_scale: 1`), adds
    up the KLs over the batch instead of averaging them (`kl_reduction: sum`), and normalises pixels with ImageNet's
    mean and deviation (`normalisation: imagenet`; it evaluates so too, which is not done here, where evaluation is
    CLIP's). The defaults are the paper's, as in the AGFT authors' copy.
    """

    teacher_input: ClassVar[Literal["none", "clean", "adversarial"]] = "adversarial"
    title: ClassVar[str] = "PMG-AFT"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Trained on Tiny-ImageNet; the official code's lr.
        "pmg-aft-paper": {
            "method": {"name": "pmg-aft", "adversarial_weight": 1.0, "clean_weight": 1.0},
            "attack": PGD2,
            "train": {**FAMILY, "optimizer": {**SGD, "lr": 5e-5}, "official_schedule": "open_clip"},
        }
    }
    search_space: ClassVar[Mapping[str, Any]] = {
        "method.adversarial_weight": {"low": 0.0, "high": 2.0},
        "method.clean_weight": {"low": 0.0, "high": 2.0},
    }
    other_form: ClassVar[tuple[str, tuple[str, ...]]] = (
        "PMG-AFT, not as in the paper", ("detach_clean", "kl_reduction", "normalisation")
    )  # fmt: skip

    name: Literal["pmg-aft"] = Field(default="pmg-aft", description="method name")
    adversarial_weight: float = Field(default=1.0, ge=0, description="a, weight of KL(p_0(x_adv) || p(x_adv))")
    clean_weight: float = Field(default=1.0, ge=0, description="b, weight of KL(p(x) || p(x_adv))")
    detach_clean: bool = Field(default=False, description="stop gradients at p(x)")
    kl_reduction: Literal["batch_mean", "sum"] = Field(
        default="batch_mean", description="KLs over the global batch: mean, or sum (official code)"
    )
    normalisation: Literal["clip", "imagenet"] = Field(
        default="clip", description="mean and deviation of pixels in training: the model's, or ImageNet's (official)"
    )

    def loss(self, model: RobustCLIP, batch: Batch, attack: AttackConfig, *, context: Context) -> Losses:
        """See `Objective.loss`. Parts: label, and of the KLs adversarial and clean those that are on; all are means."""
        import torch

        scale, teacher = self.resolved_logit_scale(model), context.teacher
        factor = context.global_batch if self.kl_reduction == "sum" else 1

        def logits(encoder: RobustCLIP, images: Tensor) -> Tensor:
            return model.logits(encoder.embed(self._pixels(model, images)), context.class_embeddings, scale)

        def label(scores: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy(scores, batch.labels, reduction="none")

        attacked = perturbed(model, lambda x: label(logits(model, x)), batch, attack, context)
        scores = logits(model, attacked)
        total = label(scores)
        parts, log_p = {"label": total}, scores.log_softmax(1)
        if self.adversarial_weight:
            assert teacher is not None, "PMG-AFT needs the frozen encoder"
            with torch.no_grad():
                log_target = logits(teacher, attacked).log_softmax(1)
            parts["adversarial"] = (log_target.exp() * (log_target - log_p)).sum(1)
            total = total + factor * self.adversarial_weight * parts["adversarial"]
        if self.clean_weight:
            log_clean = logits(model, batch.images).log_softmax(1)
            log_clean = log_clean.detach() if self.detach_clean else log_clean
            parts["clean"] = (log_clean.exp() * (log_clean - log_p)).sum(1)
            total = total + factor * self.clean_weight * parts["clean"]
        return Losses.of(total, parts, context)

    def _pixels(self, model: RobustCLIP, images: Tensor) -> Tensor:
        """Images such that the model's own normalisation gives what this method's would."""
        if self.normalisation == "clip":
            return images
        mean, std = (images.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
        return (images - mean) / std * model.std + model.mean
