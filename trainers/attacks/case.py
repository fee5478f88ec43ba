"""What an evaluation attack is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from trainers.attacks.geometry import Norm, ball, into_l2_ball
from trainers.attacks.verdict import Worst
from trainers.draws import uniform

LogitsFn = Callable[..., Tensor]
"""Images fp32 [B, 3, H, W] in [0, 1] -> logits fp32 [B, K]. Always called with all B images of the case, in order (but
for `autoattack`, which calls it with any of them).

One that is `skipping` takes `done` bool [B] as well: rows whose logits nobody will look at. For these it may return
zeros, through which a gradient of zero reaches the images.
"""


@dataclass(frozen=True)
class Case:
    """One batch under attack.

    `images` fp32 [B, 3, H, W] in [0, 1]; `labels` int64 [B] in [0, num_classes); `index` int64 [B], the images' indices
    in their dataset, which key all random draws together with `seed`; `eps` the radius in `norm`, pixels in [0, 1];
    `surrogate`: logits of another model with the same classes, for attacks that transfer. `done` bool [B]: images whose
    verdict is settled before the attack (wrong without it, or fooled at a smaller radius); None: no image's is.
    `skipping`: does `logits` take `done`, and need not compute who is?
    """

    logits: LogitsFn
    images: Tensor
    labels: Tensor
    index: Tensor
    eps: float
    num_classes: int
    norm: Norm = "linf"
    seed: int = 0
    surrogate: LogitsFn | None = None
    done: Tensor | None = None
    skipping: bool = False

    def ask(self, candidates: Tensor, done: Tensor | None) -> Tensor:
        """Logits [B, K]; those of images that are `done` (bool [B]) may be zeros."""
        return self.logits(candidates, done) if self.skipping else self.logits(candidates)

    def worst(self) -> Worst:
        """The record of an attack that has not looked at anything yet."""
        return Worst(self.labels, self.images, self.done)

    def project(self, candidates: Tensor) -> Tensor:
        """Into the ball and [0, 1]."""
        if self.norm == "linf":
            return torch.clamp(candidates, *ball(self.images, self.eps))
        return into_l2_ball(candidates, self.images, self.eps)

    def clean(self) -> Tensor:
        """Logits of the images themselves [B, K]; of those who are done from the start, perhaps zeros."""
        with torch.no_grad():
            return self.ask(self.images, self.done)

    def targets(self, kind: str) -> Tensor | None:
        """Classes [B] to be aimed at, never the label: `random`, uniform by index, or `least-likely`; `none`: None."""
        if kind == "none":
            return None
        if kind == "least-likely":
            return self.clean().scatter(1, self.labels[:, None], torch.inf).argmin(1)
        draw = uniform(self.seed, "target", 0, self.index, 1).squeeze(1)
        other = (draw * (self.num_classes - 1)).long().clamp_max(self.num_classes - 2)
        return other + (other >= self.labels)


@dataclass(frozen=True)
class Outcome:
    """`adversarial` [B, 3, H, W]: the attack's final images. `worst`: the worst images that it looked at.

    Where `logits` is skipping, and for images that are done from the start, `adversarial` is some image of the ball.
    `parts`: what ran, where an attack is made of others. `doubts`: why the attack itself thinks that its result may
    flatter the model, a sentence each.
    """

    adversarial: Tensor
    worst: Worst
    parts: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
