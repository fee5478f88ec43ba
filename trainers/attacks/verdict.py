"""What an attack did to every image: the verdict of its worst iterate, and that iterate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainers.attacks.geometry import per_image


class Worst:
    """Every image's worst iterate: the first that fools it, or else the one of least margin.

    `prediction` int64 [B], `margin` fp32 [B] (logit of the label less the largest other) and `images` [B, ...] are its
    record; before any iterate the label, infinity, and the images given. `done` bool [B]: fooled, or given as settled.
    Nothing that is seen later changes the record of an image that is done. So its logits need not be computed any more,
    an attack may end as soon as all images of a batch are done, and no record depends on which images those were.
    """

    def __init__(self, labels: Tensor, images: Tensor, done: Tensor | None = None) -> None:
        self.labels, self.images = labels, images
        self.prediction = labels.clone()
        self.margin = torch.full(labels.shape, math.inf, device=labels.device)
        self.done = torch.zeros_like(labels, dtype=torch.bool) if done is None else done

    @property
    def fooled(self) -> Tensor:
        return self.prediction != self.labels

    def look(self, logits: Tensor, images: Tensor) -> None:
        """Record one more iterate: its logits [B, K] (of those who are done: anything) and its images [B, ...]."""
        self._record(*predict(logits.detach(), self.labels), images.detach())

    def take(self, other: Worst) -> None:
        """Record the worst iterate of another attack on the same images."""
        self._record(other.prediction, other.margin, other.images)

    def _record(self, prediction: Tensor, margin: Tensor, images: Tensor) -> None:
        settled = (prediction != self.labels) | ~margin.isfinite()  # no number: kept too, for `run_attack` to refuse
        worse = ~self.done & (settled | (margin < self.margin))
        self.prediction = torch.where(worse, prediction, self.prediction)
        self.margin = torch.where(worse, margin, self.margin)
        self.images = torch.where(per_image(worse, images), images, self.images)
        self.done = self.done | settled


def predict(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Arg max [B] and margin [B] of `logits` [B, K] (K >= 2)."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return logits.argmax(1), own - others
