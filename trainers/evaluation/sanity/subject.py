"""What the sanity checks look at: clean logits, gradients and attacks, each made once and only when asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainers.attacks import Case, LogitsFn, Norm, pgd, predict, run_attack
from trainers.attacks.losses import cross_entropy, margin_loss
from trainers.draws import STREAMS, noise
from trainers.evaluation.sanity.settings import (
    HUGE,
    QUERIES,
    STRICT,
    STRONGER,
    TRANSFERRED,
    huge_eps,
    on_unmodified,
    unmodified_eps,
)
from trainers.schema.attacks import PGD, EvalAttackParameters


class NotApplicable(Exception):
    """A check has nothing to look at; the message says why."""


class Gradients(NamedTuple):
    """At every clean image: shares of pixels whose gradient is 0 or not finite, fp32 [n]; all finite? bool [n]."""

    margin: Tensor
    cross_entropy: Tensor
    finite: Tensor


@dataclass(frozen=True)
class Subject:
    """A model and n images; whatever is computed from them is on the CPU.

    `logits`, `original` (the unmodified CLIP over the same classes): images fp32 [B, 3, H, W] in [0, 1] -> fp32 [B, K];
    asked for with `batch` images under attack at a time. `images` fp32 [n, 3, H, W], `labels` and `index` int64 [n];
    `eps` is the evaluation's radius in `norm`, pixels in [0, 1].
    """

    logits: LogitsFn
    original: LogitsFn | None
    images: Tensor
    labels: Tensor
    index: Tensor
    num_classes: int
    eps: float
    norm: Norm
    seed: int
    batch: int

    @property
    def number(self) -> int:
        return len(self.labels)

    @property
    def pixels(self) -> int:
        return self.images[0].numel()

    @cached_property
    def truth(self) -> Tensor:
        """Labels [n] on the CPU."""
        return self.labels.cpu()

    @cached_property
    def clean(self) -> Tensor:
        """Logits [n, K] of the images as they are."""
        found = self.look(self.logits, self.images)
        broken = int((~found.isfinite().all(1)).sum())
        if broken:
            raise ValueError(f"sanity checks: the model's logits are not finite on {broken} of {self.number} images")
        return found

    @cached_property
    def right(self) -> Tensor:
        """bool [n]: classified right without attack."""
        return self.clean.argmax(1) == self.truth

    @cached_property
    def original_clean(self) -> Tensor:
        """The unmodified CLIP's logits [n, K] of the images as they are."""
        return self.look(self._original(), self.images)

    @cached_property
    def gradients(self) -> Gradients:
        """Of the margin and of the cross-entropy, with respect to the pixels."""

        def measure(case: Case) -> tuple[Tensor, ...]:
            with torch.enable_grad():
                x = case.images.detach().requires_grad_(True)
                logits = case.logits(x)
                losses = (margin_loss(logits, case.labels), cross_entropy(logits, case.labels))
                found = [torch.autograd.grad(loss.sum(), x, retain_graph=True)[0].flatten(1) for loss in losses]
            shares = [((gradient == 0) | ~gradient.isfinite()).float().mean(1) for gradient in found]
            return *shares, torch.stack([gradient.isfinite().all(1) for gradient in found]).all(0)

        return Gradients(*self._each(measure))

    @cached_property
    def strict(self) -> tuple[Tensor, Tensor]:
        """The strict protocol's PGD, of every iterate: cross-entropy fp32 and fooled bool, [n, STEPS + 1]."""
        self._needs_gradients()
        losses, fooled = self._each(lambda case: _ascent(case, cross_entropy, STRICT))
        return losses, fooled

    @cached_property
    def strict_left(self) -> float:
        """Share of images that are right, and that no iterate of that PGD fools."""
        return self.left(self.strict[1].any(1))

    @cached_property
    def stronger(self) -> Tensor:
        """bool [n]: fooled by Auto-PGD, on the cross-entropy or on the DLR loss that so few classes allow."""
        self._needs_gradients()
        return self._fooled(STRONGER)

    @cached_property
    def queried(self) -> Tensor:
        """bool [n]: fooled by Square, which asks for no gradient."""
        return self._fooled(QUERIES)

    @cached_property
    def transferred(self) -> Tensor:
        """bool [n]: fooled by what PGD finds on the unmodified CLIP."""
        return self._fooled(TRANSFERRED, surrogate=self._original())

    @cached_property
    def huge(self) -> Tensor:
        """bool [n]: fooled inside a huge ball, by PGD on the margin, whose gradient no logit scale makes vanish."""
        self._needs_gradients()
        eps = huge_eps(self.norm, self.pixels)
        step = HUGE.model_copy(update={"step_size": eps / 16})
        return self._each(lambda case: _ascent(replace(case, eps=eps), margin_loss, step))[1].any(1)

    @cached_property
    def unmodified(self) -> Tensor:
        """bool [n]: the unmodified CLIP is fooled by Auto-PGD at `unmodified_eps`."""
        attack = on_unmodified(self.num_classes)
        return self._fooled(attack, logits=self._original(), eps=unmodified_eps(self.norm, self.pixels))

    def left(self, fooled: Tensor) -> float:
        """Share of images that are right and not `fooled` (bool [n])."""
        return float((self.right & ~fooled).double().mean())

    def look(self, logits: LogitsFn, images: Tensor, batch: int | None = None) -> Tensor:
        """Logits [n, K] of `images` [n, 3, H, W]."""
        with torch.no_grad():
            return torch.cat([logits(part).cpu() for part in images.split(batch or self.batch)])

    def _original(self) -> LogitsFn:
        if self.original is None:
            raise NotApplicable("it needs the unmodified CLIP, which was not given")
        return _attached(self.original)

    def _needs_gradients(self) -> None:
        broken = int((~self.gradients.finite).sum())
        if broken:
            raise NotApplicable(f"no attack can follow gradients that are not finite, as on {broken} images")

    def _each(self, function: Callable[[Case], Sequence[Tensor]], **changes: Any) -> list[Tensor]:
        """`function`'s results on every batch, [n, ...] each; `changes` are of the case."""
        found = []
        for rows in torch.arange(self.number, device=self.images.device).split(self.batch):
            data = self.images[rows], self.labels[rows], self.index[rows]
            case = Case(_attached(self.logits), *data, self.eps, self.num_classes, self.norm, self.seed)
            found.append(function(replace(case, **changes)))
        return [torch.cat(parts).cpu() for parts in zip(*found, strict=True)]

    def _fooled(self, attack: EvalAttackParameters, **changes: Any) -> Tensor:
        return self._each(lambda case: [run_attack(case, attack).worst.fooled], **changes)[0]


def _attached(logits: LogitsFn) -> LogitsFn:
    """The same function; where it has lost its images (detached them), their gradient is 0 instead of an error."""

    def called(images: Tensor) -> Tensor:
        found: Tensor = logits(images)
        return found + 0 * images.flatten(1)[:, :1] if images.requires_grad else found

    return called


def _ascent(case: Case, loss: Callable[[Tensor, Tensor], Tensor], settings: PGD) -> tuple[Tensor, Tensor]:
    """PGD that goes on where images are fooled: losses fp32 and fooled bool of every iterate, [B, steps + 1]."""
    losses, fooled = [], []

    def look(x: Tensor) -> Tensor:
        logits = case.logits(x)
        found = loss(logits, case.labels)
        losses.append(found.detach())
        fooled.append(predict(logits.detach(), case.labels)[0] != case.labels)
        return found

    final = pgd(
        look,
        case.images,
        eps=case.eps,
        step_size=settings.resolved_step_size(case.eps),
        steps=settings.steps,
        start=noise(case.seed, STREAMS["start"], 0, case.index, tuple(case.images.shape[1:])),
        norm=case.norm,
    )
    with torch.no_grad():
        look(final)
    return torch.stack(losses, 1), torch.stack(fooled, 1)
