"""Losses [B] that attacks maximise, of logits [B, K] and labels [B]. Each says how many classes it needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.attacks.verdict import predict
from trainers.errors import UserError
from trainers.schema.attacks import LOSS_CLASSES, legal_losses

LogitsLoss = Callable[[Tensor], Tensor]
"""Logits [B, K] -> losses [B], the labels being known."""

TINY = 1e-12  # keeps a denominator from 0 where the leading logits are tied


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """-log softmax(logits)[label]."""
    return F.cross_entropy(logits, labels, reduction="none")


def aim(labels: Tensor, targets: Tensor | None) -> LogitsLoss:
    """The cross-entropy with the labels, or, where there are targets, less the cross-entropy with these."""
    if targets is None:
        return lambda logits: cross_entropy(logits, labels)
    return lambda logits: -cross_entropy(logits, targets)


def margin_loss(logits: Tensor, labels: Tensor, confidence: float = torch.inf) -> Tensor:
    """max_{j != y} z_j - z_y, flat above `confidence` (Carlini and Wagner 2017, equation f_6).

    The maximum is over the wrong classes only. (The official AGFT code takes it over z * (1 - onehot(y)), where the
    label's place holds a 0 that wins when all wrong logits are negative.)
    """
    return -predict(logits, labels)[1].clamp_min(-confidence)


def dlr(logits: Tensor, labels: Tensor) -> Tensor:
    """-(z_y - max_{j != y} z_j) / (z_(1) - z_(3)), z_(1) >= z_(2) >= ... (Croce and Hein 2020, equation 6)."""
    _require(logits, "dlr")
    top = logits.topk(3, dim=1).values
    return margin_loss(logits, labels) / (top[:, 0] - top[:, 2] + TINY)


def dlr_targeted(logits: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """-(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), for targets t [B] (Croce and Hein 2020, equation 7)."""
    _require(logits, "dlr-targeted")
    top = logits.topk(4, dim=1).values
    own, aimed = (logits.gather(1, rows[:, None]).squeeze(1) for rows in (labels, targets))
    return (aimed - own) / (top[:, 0] - (top[:, 2] + top[:, 3]) / 2 + TINY)


def _require(logits: Tensor, loss: str) -> None:
    classes = logits.shape[1]
    if classes < LOSS_CLASSES[loss]:
        legal = ", ".join(legal_losses(classes))
        raise UserError(f"loss {loss!r} needs at least {LOSS_CLASSES[loss]} classes, got {classes}; legal: {legal}")
