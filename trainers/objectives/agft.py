"""AGFT: adversarial fine-tuning towards the frozen CLIP's own, calibrated predictions on the clean image."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from trainers.objectives.base import Batch, Context, Losses, ScoredObjective, perturbed
from trainers.schema.presets import FAMILY, PGD2, SGD
from trainers.schema.units import OfModel

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.model.robust import RobustCLIP
    from trainers.schema.training import AttackConfig


class AGFT(ScoredObjective):
    """Alignment-guided fine-tuning. Cui et al., CVPR 2026, arXiv:2603.29410, eq. 8-10, with three optional terms.

        L = CE(P, p(x_adv; s_S)) + w_c KL(P || p(x; s_S)) + w_y CE(y, p(x_adv; s_0)) + w_f ||v(x_adv) - v_0(x)||^2
        P = softmax(gamma s_S cos_0(x)),   p(x; s) = softmax(s cos(x))

    cos(x) [K] are the cosines of the image's and the classes' embeddings, cos_0 and v_0 those of the frozen encoder,
    v unit embeddings; s_S is `logit_scale`, s_0 the model's own scale, gamma `scale_ratio`, the w's the weights.
    Every term is a sum over classes and a mean over the batch. The paper is w_c = w_y = w_f = 0; a term of weight 0
    is not computed. The attack maximises the first term (`attack_on: total`: all terms that x_adv enters).

    Deviations: eq. 9 read literally also averages the first term over classes (`class_reduction: mean`), 1/K of the
    official code's sum; the default is the sum, to which the official learning rate belongs.
    The official code updates in train mode and attacks in eval mode, which differ for ResNets, and its frozen ResNet
    drifts; here both are one function. It scores under fp16 autocast; here cosines, softmax and losses are fp32. It
    draws the attack's start from the global random state; here from (seed, epoch, sample index).
    """

    teacher_input: ClassVar[Literal["none", "clean", "adversarial"]] = "clean"
    teacher_output: ClassVar[Literal["embedding", "tokens"]] = "embedding"
    title: ClassVar[str] = "AGFT"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # The official code and its README: scale 180, ratio 0.4, lr 4e-4, 2 GPUs x 128.
        "agft-paper": {
            "method": {"name": "agft", "logit_scale": {"of_model": 1.8}, "scale_ratio": 0.4},
            "attack": PGD2,
            "train": {**FAMILY, "optimizer": {**SGD, "lr": 4e-4}, "official_schedule": "timm"},
        }
    }
    search_space: ClassVar[Mapping[str, Any]] = {
        "method.scale_ratio": {"low": 0.2, "high": 1.0},
        "method.logit_scale": {"of_model": {"low": 0.6, "high": 2.6}},
        "method.feature_weight": {"low": 0.0, "high": 20.0},
    }
    other_form: ClassVar[tuple[str, tuple[str, ...]]] = (
        "AGFT with our optional terms", ("feature_weight", "label_weight", "clean_weight", "attack_on")
    )  # fmt: skip

    name: Literal["agft"] = Field(default="agft", description="method name")
    logit_scale: Annotated[float, Field(gt=0)] | OfModel = Field(
        default=OfModel(of_model=1.8),
        description="student scale s_S = 1/tau in training: absolute, or {of_model: multiple of the model's own}",
    )
    scale_ratio: float = Field(default=0.4, gt=0, le=10, description="gamma: the teacher's scale is gamma * s_S")
    clean_weight: float = Field(default=0.0, ge=0, description="w_c, weight of KL(P || p(x)) on the clean image")
    label_weight: float = Field(default=0.0, ge=0, description="w_y, weight of the cross-entropy with the true label")
    feature_weight: float = Field(
        default=0.0, ge=0, description="w_f, weight of the squared distance of unit embeddings"
    )
    attack_on: Literal["target", "total"] = Field(default="target", description="what the attack maximises")
    class_reduction: Literal["sum", "mean"] = Field(
        default="sum", description="over classes, in the first term: sum (official code) or mean (eq. 9, 1/K of it)"
    )

    def loss(self, model: RobustCLIP, batch: Batch, attack: AttackConfig, *, context: Context) -> Losses:
        """See `Objective.loss`. Parts: target, target_kl (target less its floor H(P)), and the terms that are on."""
        import torch

        teacher_embeddings = batch.teacher_embeddings
        assert teacher_embeddings is not None, "AGFT needs the teacher's clean embeddings"
        scale = self.resolved_logit_scale(model)
        with torch.no_grad():
            teacher = model.logits(teacher_embeddings, context.class_embeddings, self.scale_ratio * scale)
            target, log_target = teacher.softmax(1), teacher.log_softmax(1)

        over_classes = torch.sum if self.class_reduction == "sum" else torch.mean

        def adversarial_terms(images: Tensor, *, every: bool) -> dict[str, Tensor]:
            """Per-sample terms [B] that depend on the attacked image."""
            embeddings = model.embed(images)
            log_p = model.logits(embeddings, context.class_embeddings, scale).log_softmax(1)
            terms = {"target": over_classes(-(target * log_p), 1)}
            if every and self.label_weight:
                own = model.logits(embeddings, context.class_embeddings, model.logit_scale)
                terms["label"] = torch.nn.functional.cross_entropy(own, batch.labels, reduction="none")
            if every and self.feature_weight:
                difference = model.unit(embeddings) - model.unit(teacher_embeddings)
                terms["feature"] = difference.square().sum(1)
            return terms

        on_total = self.attack_on == "total"
        attacked = perturbed(model, lambda x: self._sum(adversarial_terms(x, every=on_total)), batch, attack, context)
        terms = adversarial_terms(attacked, every=True)
        if self.clean_weight:
            log_p = model.logits(model.embed(batch.images), context.class_embeddings, scale).log_softmax(1)
            terms["clean"] = (target * (log_target - log_p)).sum(1)
        entropy = over_classes(-(target * log_target), 1)
        return Losses.of(self._sum(terms), {**terms, "target_kl": terms["target"] - entropy}, context)

    def _sum(self, terms: dict[str, Tensor]) -> Tensor:
        """The weighted sum [B]; with only the first term it is that tensor itself."""
        weights = {"clean": self.clean_weight, "label": self.label_weight, "feature": self.feature_weight}
        total = terms["target"]
        for name, weight in weights.items():
            if name in terms:
                total = total + weight * terms[name]
        return total
