"""What a model got right, image by image, under all attacks together; and the accuracies that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from study.results.ranking import Measurement, summary
from trainers.schema.records import Score, gap_pairs
from trainers.schema.suite import AttackAt
from trainers.schema.units import eps_label

if TYPE_CHECKING:
    from torch import Tensor

    from trainers.evaluation.verdicts import Verdicts


@dataclass(frozen=True)
class Rights:
    """n images of one set that every attack was run on. `robust[r, i]`: right, and fooled by no attack at radius r.

    `gaps`: of the calibration (`Score`) without attack and then at every radius, where an image's confidence is the one
    under the attack that left it the least margin.
    """

    index: NDArray[np.int64]
    clean: NDArray[np.bool_]
    radii: tuple[str, ...]
    robust: NDArray[np.bool_]
    gaps: tuple[int, ...] | None = None

    def of(self, metric: str) -> NDArray[np.float64]:
        """An image's share in `clean_accuracy` or `robust_accuracy`: [n] in [0, 1]; of the latter, over the radii."""
        return self.clean.astype(np.float64) if metric == "clean_accuracy" else self.robust.mean(axis=0)

    def scores(self) -> dict[str, dict[str, Any]]:
        """By radius, as JSON values."""
        correct, total = int(self.clean.sum()), len(self.index)
        gaps = gap_pairs(self.gaps, len(self.radii))
        return {
            label: Score.of(correct=correct, robust=int(row.sum()), total=total, gaps=gap).model_dump(mode="json")
            for label, row, gap in zip(self.radii, self.robust, gaps, strict=True)
        }


def radius_label(entry: AttackAt, eps: float) -> str:
    """`4/255`; in another norm than L-inf with its name."""
    return eps_label(eps) if entry.norm == "linf" else f"{eps:g} {entry.norm}"


def rights_of(pairs: Sequence[tuple[AttackAt, Verdicts]]) -> Rights:
    """From the verdicts of each attack on one set; samples of different sizes are parts of each other."""
    from trainers.evaluation.readings import bin_gaps  # verdicts are tensors: torch is loaded already

    smallest = min((verdicts.index.numpy() for _, verdicts in pairs), key=len)
    robust: dict[str, NDArray[np.bool_]] = {}
    worst: dict[str, tuple[Tensor, Tensor]] = {}  # radius -> least margins, and the confidences there
    clean: NDArray[np.bool_] | None = None
    for entry, verdicts in pairs:
        index = verdicts.index.numpy()
        rows = np.searchsorted(index, smallest)
        assert (index[rows] == smallest).all(), "the smaller sample is part of the larger one"
        clean, sure = verdicts.right.numpy()[rows], verdicts.clean.confidence[rows]
        for row, eps in enumerate(verdicts.eps):
            survived = ~verdicts.fooled[row].numpy()[rows]
            label = radius_label(entry, eps)
            robust[label] = robust.get(label, True) & survived
            margin, confidence = verdicts.attacked.margin[row][rows], verdicts.attacked.confidence[row][rows]
            if label in worst:
                least, before = worst[label]
                margin, confidence = margin.minimum(least), confidence.where(margin < least, before)
            worst[label] = margin, confidence
    assert clean is not None
    looks = [(sure, clean), *((worst[label][1], right) for label, right in robust.items())]
    gaps = tuple(int(bin_gaps(each, each.new_tensor(right)).abs().sum()) for each, right in looks)
    return Rights(smallest, clean, tuple(robust), np.stack(list(robust.values())), gaps)


def measurement(rights: Mapping[str, Rights]) -> Measurement:
    """Unweighted means over sets and radii, beside the counts they come from."""
    return summary({name: each.scores() for name, each in rights.items()})


def scores_of(rights: Mapping[str, Rights], metric: str) -> dict[str, NDArray[np.float64]]:
    """Set -> every image's share in the metric."""
    return {name: each.of(metric) for name, each in rights.items()}
