"""What an attack did to every image: the verdict of its worst iterate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from trainers.attacks.geometry import per_image

__all__ = ["PGDAny", "Worst", "predict"]


class PGDAny:
    """What the worst iterate did to every image: `fooled` bool [B], `prediction` int64 [B], `margin` fp32 [B].

    Margin = logit of the label less the largest other logit; `prediction` is that of the iterate with least margin.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels
        self.prediction = labels.clone()
        self.margin = torch.full(labels.shape, math.inf, device=labels.device)

    @property
    def fooled(self) -> Tensor:
        return self.prediction != self.labels

    def see(self, logits: Tensor) -> Tensor:
        """Record the logits [B, K] of one more iterate; for which images it is the worst so far, bool [B]."""
        prediction, margin = predict(logits.detach(), self.labels)
        wrong = prediction != self.labels
        worse = (margin < self.margin) | (wrong & ~self.fooled)
        self.prediction = torch.where(worse, prediction, self.prediction)
        self.margin = torch.where(worse, margin, self.margin)
        return worse


class Worst(PGDAny):
    """As PGDAny, and keeps the worst iterate itself: `images` [B, ...].

    An image that is fooled is done: nothing that is seen later changes its record. So an attack may end as soon as all
    images of a batch are fooled, and the record does not depend on which images those were.
    """

    def __init__(self, labels: Tensor, images: Tensor) -> None:
        super().__init__(labels)
        self.images = images

    def look(self, logits: Tensor, images: Tensor) -> None:
        """Record one more iterate, its logits [B, K] and its images [B, ...]."""
        done = self.fooled
        before = self.prediction, self.margin
        worse = self.see(logits) & ~done
        self.prediction = torch.where(done, before[0], self.prediction)
        self.margin = torch.where(done, before[1], self.margin)
        self.images = torch.where(per_image(worse, images), images.detach(), self.images)

    def take(self, other: PGDAny, images: Tensor) -> None:
        """Record the verdict of another attack's worst iterate, and its `images` [B, ...]."""
        worse = ~self.fooled & (other.fooled | (other.margin < self.margin))
        self.prediction = torch.where(worse, other.prediction, self.prediction)
        self.margin = torch.where(worse, other.margin, self.margin)
        self.images = torch.where(per_image(worse, images), images, self.images)


def predict(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Arg max [B] and margin [B] of `logits` [B, K] (K >= 2)."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return logits.argmax(1), own - others
