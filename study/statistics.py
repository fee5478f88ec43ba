"""Means over datasets with intervals; two models compared image by image, or two methods seed by seed.

scipy is imported where it is needed: it takes seconds, and most commands compare nothing.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainers.evaluation.record import EvaluationRecord, Proportion
from trainers.schema.training import Metric

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
class ImageDifference:
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


def image_difference(one: Mapping[str, Mapping[int, bool]], other: Mapping[str, Mapping[int, bool]]) -> ImageDifference:
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
    return ImageDifference(float(np.mean(observed)), float(low), float(high), only_one, only_other, p)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test (Psychometrika, 1947): are the two kinds of discordant images as frequent?"""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


# Arithmetic of a comparison: means over seeds, paired differences with t intervals, and what a method costs.

METRICS: tuple[Metric, ...] = ("clean_accuracy", "robust_accuracy")
FEWEST_PAIRS = 3  # for an interval: two differences say next to nothing about their spread
ROUNDING = 1e-12  # a deviation of accuracies below this is that of floating-point numbers


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1 below the line; None for one value)."""

    mean: float
    deviation: float | None
    n: int


@dataclass(frozen=True)
class SeedDifference:
    """Mean of paired differences with its 95 % t interval; None without one (see `seed_difference`)."""

    mean: float
    low: float | None
    high: float | None
    n: int

    @property
    def separated(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "separated": self.separated}


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    n, mean = len(values), math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Spread(mean, deviation, n)


def t_quantile(df: int, coverage: float = 0.95) -> float:
    """The t with P(-t < T < t) = coverage, of Student's T: 12.706 for one degree of freedom, 1.960 for many."""
    from scipy.stats import t

    return float(t.ppf((1 + coverage) / 2, df))


def seed_difference(own: Mapping[int, float], other: Mapping[int, float]) -> SeedDifference | None:
    """`own` - `other` over the seeds that both have; None when they share none.

    There is no interval from fewer than `FEWEST_PAIRS` seeds, nor from differences that are all the same: the latter
    estimate no spread, and an interval of no width would call any difference separated.
    """
    seeds = sorted(own.keys() & other.keys())
    if not seeds:
        return None
    found = spread([own[seed] - other[seed] for seed in seeds])
    if found.deviation is None or found.n < FEWEST_PAIRS or found.deviation < ROUNDING:
        return SeedDifference(found.mean, None, None, found.n)
    half = t_quantile(found.n - 1) * found.deviation / math.sqrt(found.n)
    return SeedDifference(found.mean, found.mean - half, found.mean + half, found.n)


def seed_differences(
    runs: Mapping[str, Mapping[int, Mapping[str, float]]], reference: str
) -> dict[str, dict[str, SeedDifference | None]]:
    """Every other method against `reference`, by metric. `runs`: label -> seed -> accuracies."""
    return {
        label: {
            metric: seed_difference(
                {seed: accuracies[metric] for seed, accuracies in own.items()},
                {seed: accuracies[metric] for seed, accuracies in runs[reference].items()},
            )
            for metric in METRICS
        }
        for label, own in runs.items()
        if label != reference
    }


def set_accuracy(scores: Mapping[str, Mapping[str, Any]], metric: str) -> float:
    """One dataset's accuracy, the mean over radii, from its scores by radius."""
    return sum(float(score[metric]) for score in scores.values()) / len(scores)
