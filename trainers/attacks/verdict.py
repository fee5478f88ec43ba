"""What an attack did to every image: the verdict of its worst iterate."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["PGDAny", "predict"]


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

    def see(self, logits: Tensor) -> None:
        """Record the logits [B, K] of one more iterate."""
        prediction, margin = predict(logits.detach(), self.labels)
        wrong = prediction != self.labels
        worse = (margin < self.margin) | (wrong & ~self.fooled)
        self.prediction = torch.where(worse, prediction, self.prediction)
        self.margin = torch.where(worse, margin, self.margin)


def predict(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Arg max [B] and margin [B] of `logits` [B, K] (K >= 2)."""
    own = logits.gather(1, labels[:, None]).squeeze(1)
    others = logits.scatter(1, labels[:, None], -math.inf).amax(1)
    return logits.argmax(1), own - others
