"""TGA-ZSR: TeCoA, with the attention that the true class draws held near the frozen CLIP's on the clean image."""

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


WEIGHTS = {False: (0.08, 0.05), True: (0.10, 0.07)}  # (a, b) of TGA-ZSR and of Comp-TGA
TRAIN = {**FAMILY, "batch_size": 128, "optimizer": {**SGD, "lr": 1e-4}, "official_schedule": "open_clip"}


class TGAZSR(ScoredObjective):
    """Text-guided attention. Yu et al., NeurIPS 2024, arXiv:2410.21802; complementary: TPAMI 2026, arXiv:2603.18598.

        L = CE(y, p(x_adv)) + a ||A(x_adv) - A_0(x)||_2 + b ||A(x) - A_0(x)||_2
        A(x) = up(minmax_j <t_j(x), u_y>)

    p(x) = softmax(s cos(x)) with `logit_scale` s; t_j(x) are the patches' embeddings (final norm and projection applied
    to every patch) divided by their length, u_y the text embedding of the true class y. minmax maps the smallest score
    of an image's patches to 0 and the largest to 1; `up` is bilinear, to the model's input size, and the norm is that
    of all its pixels. A_0 is the frozen CLIP's. A mean over the batch; a term of weight 0 is not computed. The attack
    maximises the first term. ViTs only. Where all scores of an image are equal, its map is 0.

    `complementary` (Comp-TGA): A = up(minmax <t, u_y>) * (1 - up(minmax <t, n_y>)), n_y the text embedding of
    "This is not a photo of a {class}"; its weights are a = 0.10 and b = 0.07 instead of 0.08 and 0.05.

    Deviations: the official code (zhyblue424/TGA-ZSR) divides embeddings not by each token's length but, dimension by
    dimension, by the length over the image's tokens, class token included (`token_norm: tokens`); so does the AGFT
    authors' copy, which moreover takes the mean of absolute differences over pixels (`map_distance: pixel_mean`, at
    least 224 times smaller for 224 pixels a side) and swaps a and b. The official code encodes x_adv twice; here both
    terms share a forward. It has NaN where all scores of an image are equal.
    """

    teacher_input: ClassVar[Literal["none", "clean", "adversarial"]] = "clean"
    teacher_output: ClassVar[Literal["embedding", "tokens"]] = "tokens"
    title: ClassVar[str] = "TGA-ZSR"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        # Trained on Tiny-ImageNet, batch 128.
        "tga-zsr-paper": {
            "method": {"name": "tga-zsr", "attention_weight": 0.08, "clean_weight": 0.05},
            "attack": PGD2,
            "train": TRAIN,
        },
        # As TGA-ZSR, its own weights.
        "comp-tga-paper": {
            "method": {"name": "tga-zsr", "complementary": True, "attention_weight": 0.10, "clean_weight": 0.07},
            "attack": PGD2,
            "train": TRAIN,
        },
    }
    search_space: ClassVar[Mapping[str, Any]] = {
        "method.attention_weight": {"low": 0.01, "high": 0.5, "log": True},
        "method.clean_weight": {"low": 0.01, "high": 0.5, "log": True},
    }
    other_form: ClassVar[tuple[str, tuple[str, ...]]] = (
        "TGA-ZSR, not as in the paper", ("map_distance", "token_norm")
    )  # fmt: skip

    name: Literal["tga-zsr"] = Field(default="tga-zsr", description="method name")
    complementary: bool = Field(default=False, description="Comp-TGA's maps, with the prompt that denies the class")
    attention_weight: float | None = Field(
        default=None, ge=0, description="a, weight of the attacked map; null = the paper's 0.08, complementary 0.10"
    )
    clean_weight: float | None = Field(
        default=None, ge=0, description="b, weight of the clean map; null = the paper's 0.05, complementary 0.07"
    )
    map_distance: Literal["l2", "pixel_mean"] = Field(
        default="l2", description="of two maps: L2 norm of all pixels, or mean absolute difference (AGFT's copy)"
    )
    token_norm: Literal["embedding", "tokens"] = Field(
        default="embedding", description="patches' embeddings are divided by their length, or as in the official code"
    )

    @property
    def complement_template(self) -> str | None:
        """See `Objective`."""
        return "This is not a photo of a {}" if self.complementary else None

    @property
    def weights(self) -> tuple[float, float]:
        """(a, b) as numbers."""
        a, b = WEIGHTS[self.complementary]
        given = self.attention_weight, self.clean_weight
        return a if given[0] is None else given[0], b if given[1] is None else given[1]

    def loss(self, model: RobustCLIP, batch: Batch, attack: AttackConfig, *, context: Context) -> Losses:
        """See `Objective.loss`. Parts: label, and of the maps attention and clean those that are on."""
        import torch

        scale, (attention_weight, clean_weight) = self.resolved_logit_scale(model), self.weights

        def label(embeddings: Tensor) -> Tensor:
            logits = model.logits(embeddings, context.class_embeddings, scale)
            return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")

        attacked = perturbed(model, lambda x: label(model.embed(x)), batch, attack, context)
        if not attention_weight and not clean_weight:
            loss = label(model.embed(attacked))
            return Losses.of(loss, {"label": loss}, context)
        assert context.teacher is not None, "TGA-ZSR needs the frozen encoder"
        with torch.no_grad():
            target = self._map(model, context.teacher.embed_tokens(batch.images), batch, context)
        parts = {}
        if attention_weight:
            tokens = model.embed_tokens(attacked)
            total = parts["label"] = label(tokens[0])
            parts["attention"] = self._distance(self._map(model, tokens, batch, context), target)
            total = total + attention_weight * parts["attention"]
        else:
            total = parts["label"] = label(model.embed(attacked))
        if clean_weight:
            clean = self._map(model, model.embed_tokens(batch.images), batch, context)
            parts["clean"] = self._distance(clean, target)
            total = total + clean_weight * parts["clean"]
        return Losses.of(total, parts, context)

    def _map(self, model: RobustCLIP, tokens: tuple[Tensor, Tensor], batch: Batch, context: Context) -> Tensor:
        """A [B, pixels of the model's input] from class token [B, D] and patches [B, P, D]."""
        import torch

        whole, patches = tokens
        if self.token_norm == "tokens":
            features = patches / torch.cat([whole[:, None], patches], 1).norm(dim=1, keepdim=True)
        else:
            features = model.unit(patches)
        attention = self._guided(features, context.class_embeddings[batch.labels], model.image_size)
        if self.complementary:
            assert context.complement_embeddings is not None, "Comp-TGA needs the prompts that deny the classes"
            complement = context.complement_embeddings[batch.labels]
            attention = attention * (1 - self._guided(features, complement, model.image_size))
        return attention

    @staticmethod
    def _guided(features: Tensor, texts: Tensor, size: int) -> Tensor:
        """The map [B, size * size] of features [B, P, D] and texts [B, D]."""
        import torch

        scores = (features * texts[:, None]).sum(2)
        lowest, highest = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
        spread = highest - lowest
        scores = (scores - lowest) / torch.where(spread > 0, spread, 1)
        side = math.isqrt(scores.shape[1])
        grid = scores.view(-1, 1, side, side)
        return torch.nn.functional.interpolate(grid, (size, size), mode="bilinear", align_corners=False).flatten(1)

    def _distance(self, one: Tensor, other: Tensor) -> Tensor:
        """Of two maps [B, pixels], per image [B]."""
        difference = one - other
        return difference.norm(dim=1) if self.map_distance == "l2" else difference.abs().mean(1)
