"""Means over datasets with intervals, and two models compared image by image."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.result import EvaluationRecord, Proportion

__all__ = ["Difference", "Mean", "means", "paired_difference", "right_of_each"]

REPLICATES = 20_000
SEED = 0
CLEAN = "clean"


@dataclass(frozen=True)
class Mean:
    """An unweighted mean over datasets, with a 95 % interval of a bootstrap that resamples the images of every set."""

    attack: str  # its label, or `clean`
    eps: str | None
    source: bool  # are sets like those of fine-tuning among them?
    sets: tuple[str, ...]
    missing: tuple[str, ...]  # sets of the other means of its group that this attack and radius were not measured on
    accuracy: float
    low: float
    high: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def means(records: Sequence[EvaluationRecord], source: Collection[str] = ()) -> list[Mean]:
    """Of one model's records in one suite: clean, and every attack at every radius; then all again without `source`.

    Clean accuracy is that of each set's largest sample. The bootstrap is stratified by dataset: resampling n images of
    which k are right, with replacement, gives a binomial count of n and k / n, so counts are drawn, not images. A set
    on which all images, or none, are right adds no width: with few images look at its own interval.
    """
    found: list[Mean] = []
    for group in (False, True):
        if group and not any(record.dataset.name in source for record in records):
            break
        columns = _columns([record for record in records if not (group and record.dataset.name in source)])
        for (attack, eps), sets in columns.items():
            if sets:
                low, high = _interval(list(sets.values()))
                accuracy = sum(value.accuracy for value in sets.values()) / len(sets)
                missing = tuple(name for name in columns[CLEAN, None] if name not in sets)
                found.append(Mean(attack, eps, not group, tuple(sets), missing, accuracy, low, high))
    return found


def _columns(records: Sequence[EvaluationRecord]) -> dict[tuple[str, str | None], dict[str, Proportion]]:
    """(attack, radius) -> dataset -> accuracy."""
    columns: dict[tuple[str, str | None], dict[str, Proportion]] = {(CLEAN, None): {}}
    for record in records:
        name, clean = record.dataset.name, columns[CLEAN, None]
        if name not in clean or clean[name].total < record.clean.total:
            clean[name] = record.clean
        for at in record.radii:
            columns.setdefault((record.attack_label, at.label), {})[name] = at.robust
    return columns


def _interval(values: Sequence[Proportion]) -> tuple[float, float]:
    rng = np.random.default_rng(SEED)
    draws = [rng.binomial(value.total, value.accuracy, REPLICATES) / value.total for value in values]
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """One model less another on the same images of the same sets: points of 1, with a 95 % bootstrap interval.

    `only_one`, `only_other`: images that only the one, only the other has right; `p`: McNemar's exact test, by set.
    """

    mean: float
    low: float
    high: float
    only_one: dict[str, int]
    only_other: dict[str, int]
    p: dict[str, float]


def right_of_each(table: bytes, eps: str | None) -> dict[int, bool]:
    """From a record's table of images (gzipped CSV): image -> is it right at this radius; None: without attack."""
    column = "clean_prediction" if eps is None else "adversarial_prediction"
    rows = csv.DictReader(io.StringIO(gzip.decompress(table).decode()))
    return {int(row["index"]): row[column] == row["label"] for row in rows if eps is None or row["eps"] == eps}


def paired_difference(one: Mapping[str, Mapping[int, bool]], other: Mapping[str, Mapping[int, bool]]) -> Difference:
    """Of two models' images (dataset -> image -> right?). `ValueError` if they are not the same images.

    Resampling the images of a set gives multinomial counts of those that only the one, only the other has right.
    """
    if one.keys() != other.keys() or any(one[name].keys() != other[name].keys() for name in one):
        raise ValueError("the two were not measured on the same images")
    rng = np.random.default_rng(SEED)
    only_one, only_other, p = {}, {}, {}
    observed: list[float] = []
    draws: list[NDArray[np.float64]] = []
    for name, rights in one.items():
        gained = sum(right and not other[name][image] for image, right in rights.items())
        lost = sum(other[name][image] and not right for image, right in rights.items())
        n = len(rights)
        only_one[name], only_other[name], p[name] = gained, lost, mcnemar(gained, lost)
        observed.append((gained - lost) / n)
        drawn = rng.multinomial(n, [gained / n, lost / n, (n - gained - lost) / n], REPLICATES)
        draws.append((drawn[:, 0] - drawn[:, 1]) / n)
    low, high = np.quantile(np.mean(draws, axis=0), [0.025, 0.975])
    return Difference(float(np.mean(observed)), float(low), float(high), only_one, only_other, p)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test (Psychometrika, 1947): are the two kinds of discordant images as frequent?

    Twice the binomial tail below the rarer kind, at most 1; in whole numbers, each coefficient from the one before.
    """
    n = gained + lost
    coefficient = tail = 1
    for k in range(1, min(gained, lost) + 1):
        coefficient = coefficient * (n - k + 1) // k
        tail += coefficient
    return min(1.0, 2 * tail / 2**n)
