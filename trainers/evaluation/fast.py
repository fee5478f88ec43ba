"""Protocol fast: the attack searches in half precision, fp32 confirms what it finds, and a sample says what it misses.

An image counts as fooled only where an fp32 forward of the image that was found is wrong. What the search takes for
fooled and fp32 does not is attacked again in fp32, and so is one in ten of all others, chosen by index: there the
strict verdict is known, and where it differs is counted. So a record says by how much its robust accuracy differs from
the strict protocol's, with an interval.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from trainers.arithmetic import resolved_precision
from trainers.attacks import Case, predict, run_attack
from trainers.draws import uniform
from trainers.evaluation.record import wilson
from trainers.evaluation.scorer import Scorer
from trainers.schema.attacks import EvalAttackParameters

CHECKED = 0.1  # of the attacked images
EXACT, UNCHECKED, SAME, MISSED, EXTRA = range(5)
"""How an image's verdict is known: as the strict protocol gives it (not attacked, or attacked in fp32 after all); not
checked; checked, and the same; fooled in fp32 alone (and so counted); fooled, and not by the strict attack."""


def fast_attack(scorer: Scorer, case: Case, parameters: EvalAttackParameters) -> tuple[Tensor, Tensor]:
    """The worst images found [B, ...], and how each verdict is known, uint8 [B]; needs `exact` around it."""
    with _searching(scorer):
        found = run_attack(case, parameters).worst
    with torch.no_grad():
        prediction, _ = predict(scorer(found.images), case.labels)
    fooled = prediction != case.labels
    unconfirmed = found.fooled & ~fooled
    drawn = uniform(case.seed, "check", 0, case.index, 1).squeeze(1) < CHECKED
    images = found.images.clone()
    known = torch.full_like(case.labels, UNCHECKED, dtype=torch.uint8)
    again = (unconfirmed | drawn).nonzero().squeeze(1)
    if len(again):
        pixels, labels, index = (each[again] for each in (case.images, case.labels, case.index))
        strict = run_attack(replace(case, images=pixels, labels=labels, index=index), parameters).worst
        ours, theirs = fooled[again], strict.fooled
        compared = torch.where(ours == theirs, SAME, torch.where(theirs, MISSED, EXTRA))
        known[again] = torch.where(unconfirmed[again], EXACT, compared).to(torch.uint8)
        images[again[~ours]] = strict.images[~ours]
    return images, known.cpu()


@contextlib.contextmanager
def _searching(scorer: Scorer) -> Iterator[None]:
    """bf16, but where a GPU would only imitate it."""
    model, before = scorer.model, scorer.model.precision
    on_cpu = scorer.device.type == "cpu"
    try:
        model.precision = "bf16" if on_cpu else resolved_precision("auto", scorer.device)
        yield
    finally:
        model.precision = before


@dataclass(frozen=True)
class Checks:
    """Of one radius, over all ranks: images whose verdict was not checked, and what the checked ones gave."""

    unchecked: int
    same: int
    missed: int
    extra: int

    def bias(self, total: int) -> tuple[float, float, float]:
        """By how much the robust accuracy of `total` images is above the strict protocol's: estimate, low, high.

        The checked ones are known; of the others, Wilson's 95 % intervals of both kinds of difference, at their worst
        together.
        """
        checked = self.same + self.missed + self.extra
        if checked == 0:
            return 0.0, -self.unchecked / total, self.unchecked / total
        missed, extra = wilson(self.missed, checked), wilson(self.extra, checked)
        shares = (self.missed - self.extra) / checked, missed[0] - extra[1], missed[1] - extra[0]
        estimate, low, high = ((self.unchecked * share - self.extra) / total for share in shares)
        return estimate, low, high
