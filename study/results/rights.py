"""What a model got right, image by image, under all attacks together; and the accuracies that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from study.results.ranking import Measurement, summary
from trainers.schema.records import Score
from trainers.schema.suite import AttackAt
from trainers.schema.units import eps_label

if TYPE_CHECKING:
    from trainers.evaluation.verdicts import Verdicts


@dataclass(frozen=True)
class Rights:
    """n images of one set that every attack was run on. `robust[r, i]`: right, and fooled by no attack at radius r."""

    index: NDArray[np.int64]
    clean: NDArray[np.bool_]
    radii: tuple[str, ...]
    robust: NDArray[np.bool_]

    def of(self, metric: str) -> NDArray[np.float64]:
        """An image's share in `clean_accuracy` or `robust_accuracy`: [n] in [0, 1]; of the latter, over the radii."""
        return self.clean.astype(np.float64) if metric == "clean_accuracy" else self.robust.mean(axis=0)

    def scores(self) -> dict[str, dict[str, Any]]:
        """By radius, as JSON values."""
        correct, total = int(self.clean.sum()), len(self.index)
        return {
            label: Score.of(correct=correct, robust=int(row.sum()), total=total).model_dump(mode="json")
            for label, row in zip(self.radii, self.robust, strict=True)
        }


def radius_label(entry: AttackAt, eps: float) -> str:
    """`4/255`; in another norm than L-inf with its name."""
    return eps_label(eps) if entry.norm == "linf" else f"{eps:g} {entry.norm}"


def rights_of(pairs: Sequence[tuple[AttackAt, Verdicts]]) -> Rights:
    """From the verdicts of each attack on one set; samples of different sizes are parts of each other."""
    smallest = min((verdicts.index.numpy() for _, verdicts in pairs), key=len)
    robust: dict[str, NDArray[np.bool_]] = {}
    clean: NDArray[np.bool_] | None = None
    for entry, verdicts in pairs:
        index = verdicts.index.numpy()
        rows = np.searchsorted(index, smallest)
        assert (index[rows] == smallest).all(), "the smaller sample is part of the larger one"
        clean = verdicts.right.numpy()[rows]
        for row, eps in enumerate(verdicts.eps):
            survived = ~verdicts.fooled[row].numpy()[rows]
            label = radius_label(entry, eps)
            robust[label] = robust.get(label, True) & survived
    assert clean is not None
    return Rights(smallest, clean, tuple(robust), np.stack(list(robust.values())))


def measurement(rights: Mapping[str, Rights]) -> Measurement:
    """Unweighted means over sets and radii, beside the counts they come from."""
    return summary({name: each.scores() for name, each in rights.items()})


def scores_of(rights: Mapping[str, Rights], metric: str) -> dict[str, NDArray[np.float64]]:
    """Set -> every image's share in the metric."""
    return {name: each.of(metric) for name, each in rights.items()}
