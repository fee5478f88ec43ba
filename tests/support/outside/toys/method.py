"""A method: the mean squared length of the attacked image's embedding less its class's text embedding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from trainers.objectives.base import Batch, Context, Losses, Objective, perturbed
from trainers.schema.presets import FAMILY, PGD2, SGD

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.model.robust import RobustCLIP
    from trainers.schema.training import AttackConfig


class ToyMethod(Objective):
    """L = pull ||v(x_adv) - u_y||^2, v and u_y unit embeddings of the attacked image and of its class."""

    title: ClassVar[str] = "Toy"
    presets: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "toy-paper": {
            "method": {"name": "toy-method", "pull": 2.0},
            "attack": PGD2,
            "train": {**FAMILY, "optimizer": {**SGD, "lr": 1e-4}, "official_schedule": "open_clip"},
        }
    }
    search_space: ClassVar[Mapping[str, Any]] = {"method.pull": {"low": 0.5, "high": 4.0}}
    other_form: ClassVar[tuple[str, tuple[str, ...]]] = ("Toy, weighted", ("pull",))

    name: Literal["toy-method"] = Field(default="toy-method", description="method name")
    pull: float = Field(default=1.0, gt=0, description="weight of the distance")

    def loss(self, model: RobustCLIP, batch: Batch, attack: AttackConfig, *, context: Context) -> Losses:
        """See `Objective.loss`. Parts: distance."""

        def distance(images: Tensor) -> Tensor:
            cosines = model.logits(model.embed(images), context.class_embeddings, 1.0)
            return self.pull * (2 - 2 * cosines.gather(1, batch.labels[:, None]).squeeze(1))

        loss = distance(perturbed(model, distance, batch, attack, context))
        return Losses.of(loss, {"distance": loss}, context)
