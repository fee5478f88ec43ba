"""What a model says about images: predictions, margins, confidences, cosines, and how far it follows another model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from trainers.attacks import predict
from trainers.schema.records import GAP_UNIT

TOP = 5
BINS = 15  # of the calibration error, as in Guo et al. 2017


@dataclass(frozen=True)
class Readings:
    """One value an image, [..., n]; on the CPU.

    `prediction` int64; fp32: `margin`, the label's logit less the largest other; `confidence`, the largest probability
    at the model's own scale; `top_cosine` and `mean_cosine`, over the classes; `overlap` with another model's top
    classes, NaN where there is no other model.
    """

    prediction: Tensor
    margin: Tensor
    confidence: Tensor
    top_cosine: Tensor
    mean_cosine: Tensor
    overlap: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Readings:
        """`change` applied to every tensor."""
        return Readings(**{name: change(getattr(self, name)) for name in READINGS})

    def at(self, where: Tensor) -> Readings:
        """The rows `where`, a mask or indices."""
        return self.each(lambda values: values[where])

    def put(self, where: Tensor, others: Readings) -> None:
        """Overwrite the rows `where` (int64 [m]) of one-dimensional readings."""
        for name in READINGS:
            getattr(self, name)[where] = getattr(others, name)

    @staticmethod
    def join(parts: Sequence[Readings], dim: int = 0) -> Readings:
        """Concatenated; needs at least one part."""
        return Readings(**{name: torch.cat([getattr(part, name) for part in parts], dim) for name in READINGS})

    @staticmethod
    def stack(parts: Sequence[Readings]) -> Readings:
        """On a new first dimension."""
        return Readings(**{name: torch.stack([getattr(part, name) for part in parts]) for name in READINGS})

    @staticmethod
    def empty() -> Readings:
        """Of no image."""
        return Readings(torch.zeros(0, dtype=torch.int64), *(torch.zeros(0) for _ in READINGS[1:]))


READINGS = tuple(field.name for field in fields(Readings))


def read(logits: Tensor, labels: Tensor, scale: float, others_top: Tensor | None = None) -> Readings:
    """Readings of `logits` fp32 [n, K] = `scale` * cosines, K >= 2; `others_top` int64 [n, k]: the other model's."""
    prediction, margin = predict(logits, labels)
    cosines = logits / scale
    nothing = torch.full_like(margin, torch.nan)
    found = Readings(
        prediction=prediction,
        margin=margin,
        confidence=logits.softmax(1).amax(1),
        top_cosine=cosines.amax(1),
        mean_cosine=cosines.mean(1),
        overlap=nothing if others_top is None else overlap(top_classes(logits), others_top),
    )
    return found.each(lambda values: values.cpu())


def top_classes(logits: Tensor) -> Tensor:
    """The five classes with the largest logits, int64 [n, min(5, K)]."""
    return logits.topk(min(TOP, logits.shape[1]), dim=1).indices


def overlap(mine: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of two sets of k classes an image, int64 [n, k] each -> fp32 [n].

    AGFT's measure of how far the zero-shot structure survives (Cui et al. 2026, table 9): the tuned model's top 5 on an
    image, attacked or not, against the original model's top 5 on the clean image.
    """
    common = (mine[:, :, None] == others[:, None, :]).any(2).sum(1)
    return common / (2 * mine.shape[1] - common)


def calibration_error(confidence: Tensor, right: Tensor) -> float:
    """Expected calibration error of n > 0 images: sum over 15 bins of |accuracy - mean confidence| * share of images.

    Equal bins of (0, 1]. Guo et al., ICML 2017, arXiv:1706.04599, equation 5. In fp64, so that order does not matter.
    """
    confidence, right = confidence.double(), right.double()
    gaps = torch.zeros(BINS, dtype=torch.float64).index_add(0, bins_of(confidence), right - confidence)
    return float(gaps.abs().sum() / len(confidence))


def bins_of(confidence: Tensor) -> Tensor:
    """Which of 15 equal bins of (0, 1], int64 [n] from 0, a confidence fp64 [n] is in."""
    return (confidence * BINS).ceil().long().clamp(1, BINS) - 1


def bin_gaps(confidence: Tensor, right: Tensor) -> Tensor:
    """What `calibration_error` sums, as whole numbers: right images less their confidences, int64 [15], in 2^-40.

    `confidence` fp32 [n], which 2^-40 divides without a remainder (from 1 / 131,072 on), so that the sums over any
    parts of the images, added in any order, are those over all: sum(|gaps|) / (n 2^40) is the error.
    """
    confidence = confidence.double()
    gaps = right.to(torch.int64) * GAP_UNIT - (confidence * GAP_UNIT).round().to(torch.int64)
    return torch.zeros(BINS, dtype=torch.int64).index_add(0, bins_of(confidence), gaps)
