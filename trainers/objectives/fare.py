"""FARE: adversarial fine-tuning towards the frozen encoder's embeddings; no labels, no text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainers.objectives.base import Batch, Context, Losses, Objective, perturbed
from trainers.schema.presets import PGD2

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.model.robust import RobustCLIP
    from trainers.schema.training import AttackConfig


class FARE(Objective):
    """Fine-tuning for adversarially robust embeddings. Schlarmann et al., ICML 2024, arXiv:2402.12336.

        L = (1 - w) ||f(x_adv) - f_0(x)||^2 + w ||f(x) - f_0(x)||^2

    f(x) and f_0(x) are the raw embeddings, not of unit norm, of the encoder and the frozen one. A sum over dimensions,
    a mean over the batch. The attack maximises the first norm; it starts at random, since at x itself, before any
    update, the gradient is 0. The paper is w = 0, where the second term is not computed. Its attack is 10 steps with
    momentum 0.9 (`attack.momentum`).

    Deviations: the official code (chs20/RobustVLM at 7de10ee, train/) has w (`--clean_weight`) beside the paper,
    computes f(x) in every step even without it, and averages the attack's loss over the batch; here it is a sum. With
    `--trades` it puts the encoder's own f(x) in the place of f_0(x) in the first term, which is left out here.
    Its attack does not clip the random start to [0, 1], but every later iterate: the first gradient is taken outside of
    the pixels, and the first step starts there. Without saturated pixels that is the same. Where one value in six is 0
    or 1, 17 to 19 % of the attacked image's values differ after 2 steps, 7 to 14 % after 10 (eps 2/255, tiny CLIP and
    a small random ViT). Its scheduler steps after the update (`scheduler(step)` follows `optimizer.step()`), so the
    first update is made at the full rate, before the warm-up; every later one has the rate that it has here.
    """

    teacher_input: ClassVar[Literal["none", "clean", "adversarial"]] = "clean"
    title: ClassVar[str] = "FARE"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # 20,000 updates of 128 images (2 epochs of ImageNet), fp32, eps 2/255 (or 4/255).
        "fare-paper": {
            "method": {"name": "fare"},
            "attack": {**PGD2, "eps": "2/255", "step_size": "1/255", "steps": 10, "momentum": 0.9},
            "train": {
                "epochs": 2,
                "batch_size": 128,
                "precision": "fp32",
                "warmup": {"steps": 1400},
                "optimizer": {"name": "adamw", "lr": 1e-5, "momentum": 0.9, "beta2": 0.999, "weight_decay": 1e-4},
                "official_schedule": "open_clip",
            },
        }
    }
    search_space: ClassVar[Mapping[str, Any]] = {"method.clean_weight": {"low": 0.0, "high": 0.9}}
    other_form: ClassVar[tuple[str, tuple[str, ...]]] = ("FARE with a term for the clean image", ("clean_weight",))

    name: Literal["fare"] = Field(default="fare", description="method name")
    clean_weight: float = Field(
        default=0.0, ge=0, lt=1, description="w, share of the clean image's distance; the attacked one's is 1 - w"
    )

    def loss(self, model: RobustCLIP, batch: Batch, attack: AttackConfig, *, context: Context) -> Losses:
        """See `Objective.loss`. Parts: feature, and clean where its weight is not 0."""
        target = batch.teacher_embeddings
        assert target is not None, "FARE needs the teacher's clean embeddings"

        def distance(images: Tensor) -> Tensor:
            return (model.embed(images) - target).square().sum(1)

        feature = distance(perturbed(model, distance, batch, attack, context))
        if not self.clean_weight:
            return Losses.of(feature, {"feature": feature}, context)
        clean = distance(batch.images)
        total = (1 - self.clean_weight) * feature + self.clean_weight * clean
        return Losses.of(total, {"feature": feature, "clean": clean}, context)
