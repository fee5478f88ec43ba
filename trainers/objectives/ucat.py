"""UCAT: TeCoA, with the attacked image's Dirichlet distribution over the classes held near the frozen CLIP's."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainers.objectives.base import Batch, Context, Losses, ScoredObjective, perturbed
from trainers.schema.presets import FAMILY, PGD2, SGD

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.model.robust import RobustCLIP
    from trainers.schema.training import AttackConfig

LEAST = 1e-6  # added to every concentration


class UCAT(ScoredObjective):
    """Uncertainty-calibrated adversarial fine-tuning. Lu et al., ICML 2026, arXiv:2512.12997.

        L = CE(y, p(x_adv; s)) + w / (1 + exp(2 / k)) KL(Dir(a(x_adv)) || Dir(a_0(x)))
        a(x) = 1e-6 + exp((cos(x) + 1) / k)

    cos(x) [K] are the cosines of the image's and the classes' embeddings, a_0 are the frozen CLIP's concentrations of
    the clean image, k is `concentration`, y the label. Softmax forgets how large the logits are; a Dirichlet's total
    concentration keeps it as the model's certainty. 1 + exp(2 / k) is the greatest concentration there is. A mean over
    the batch. The attack maximises the first term.

    Source: the official code (VivienLu/UCAT at e3bea1d, main.py: `target_concentration`, `tau`), of which this is every
    term; of the paper's own text the abstract and a digest were read, no more. Deviations: the code computes the KL in
    fp32, where the log-gamma of a concentration of 1e7 has lost every digit after the comma; here it is fp64. It runs
    the encoder on the clean image as well, with gradients, only to report an accuracy; that is left out. Its attack
    averages the loss over the batch, under fp16 autocast like everything; here it is a sum in fp32. It prompts without
    the full stop.
    """

    teacher_input: ClassVar[Literal["none", "clean", "adversarial"]] = "clean"
    title: ClassVar[str] = "UCAT"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Trained on Tiny-ImageNet; batch and concentration of the README's command, the rest its defaults.
        "ucat-paper": {
            "method": {"name": "ucat", "dirichlet_weight": 1e5, "concentration": 0.07},
            "attack": PGD2,
            "train": {**FAMILY, "optimizer": {**SGD, "lr": 1e-4}, "official_schedule": "open_clip"},
        }
    }
    search_space: ClassVar[Mapping[str, Any]] = {
        "method.dirichlet_weight": {"low": 1e3, "high": 1e7, "log": True},
    }

    name: Literal["ucat"] = Field(default="ucat", description="method name")
    dirichlet_weight: float = Field(
        default=1e5, ge=0, description="w, weight of the KL between Dirichlets, over the greatest concentration"
    )
    concentration: float = Field(
        default=0.07, ge=0.02, le=10, description="k: a cosine of c has the concentration exp((c + 1) / k)"
    )

    def loss(self, model: RobustCLIP, batch: Batch, attack: AttackConfig, *, context: Context) -> Losses:
        """See `Objective.loss`. Parts: label, and dirichlet where its weight is not 0: the KL as it is weighted."""
        import torch

        scale = self.resolved_logit_scale(model)

        def cosines(embeddings: Tensor) -> Tensor:
            return model.logits(embeddings, context.class_embeddings, 1.0)

        def label(found: Tensor) -> Tensor:
            return torch.nn.functional.cross_entropy(scale * found, batch.labels, reduction="none")

        attacked = perturbed(model, lambda x: label(cosines(model.embed(x))), batch, attack, context)
        found = cosines(model.embed(attacked))
        total = label(found)
        parts = {"label": total}
        if self.dirichlet_weight:
            assert batch.teacher_embeddings is not None, "UCAT needs the teacher's clean embeddings"
            own, frozen = (self._concentrations(each) for each in (found, cosines(batch.teacher_embeddings).detach()))
            factor = self.dirichlet_weight / (1 + math.exp(2 / self.concentration))
            parts["dirichlet"] = (factor * dirichlet_kl(own, frozen)).to(total.dtype)
            total = total + parts["dirichlet"]
        return Losses.of(total, parts, context)

    def _concentrations(self, cosines: Tensor) -> Tensor:
        """fp64 [B, K]."""
        return LEAST + ((cosines.double() + 1) / self.concentration).exp()


def dirichlet_kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(Dir(p) || Dir(q)) of concentrations fp64 [B, K] -> [B].

    log G(p_0) - sum log G(p) - log G(q_0) + sum log G(q) + sum (p - q) (psi(p) - psi(p_0)), p_0 = sum p.
    """
    whole_p, whole_q = p.sum(1), q.sum(1)
    gammas = whole_p.lgamma() - p.lgamma().sum(1) - whole_q.lgamma() + q.lgamma().sum(1)
    return gammas + ((p - q) * (p.digamma() - whole_p.digamma()[:, None])).sum(1)
