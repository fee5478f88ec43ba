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
from statistics import NormalDist
from typing import Any

from trainers.evaluation.record import EvaluationRecord, Proportion
from trainers.schema.training import Metric

COVERAGE = 0.95
Z = NormalDist().inv_cdf((1 + COVERAGE) / 2)
CLEAN = "clean"


@dataclass(frozen=True)
class Mean:
    """An unweighted mean over datasets, with the 95 % interval of `mean_interval`."""

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

    Clean accuracy is that of each set's largest sample.
    """
    found: list[Mean] = []
    for group in (False, True):
        if group and not any(record.dataset.name in source for record in records):
            break
        columns = _columns([record for record in records if not (group and record.dataset.name in source)])
        for (attack, eps), sets in columns.items():
            if sets:
                low, high = mean_interval(list(sets.values()))
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


def mean_interval(values: Sequence[Proportion]) -> tuple[float, float]:
    """The 95 % interval of the unweighted mean of m sets' accuracies. Price and Bonett, CSDA 45, 2004, p. 449.

    Every set is given 4 / m images more, half of them right, and the normal interval is taken: for one set that of
    Agresti and Coull (Am. Stat. 52, 1998). So a set on which all images or none are right still adds its width, which
    resampling its images would not; and its coverage holds in a mean of many such sets, which that of Wilson's
    intervals put together, or of draws from Jeffreys' posterior, does not (for 15 sets of 30 images at 1 % they hold
    the truth in 84 % and 15 %, this in 96 %).
    """
    m = len(values)
    totals = [value.total + 4 / m for value in values]
    shares = [(value.correct + 2 / m) / total for value, total in zip(values, totals, strict=True)]
    half = Z / m * math.sqrt(math.fsum(p * (1 - p) / total for p, total in zip(shares, totals, strict=True)))
    centre, observed = math.fsum(shares) / m, math.fsum(value.accuracy for value in values) / m
    return max(0.0, min(observed, centre - half)), min(1.0, max(observed, centre + half))


@dataclass(frozen=True)
class ImageDifference:
    """One model less another on the same images of the same sets: points of 1, with a 95 % interval.

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

    The adjusted Wald interval of Bonett and Price (J. Educ. Behav. Stat. 37, 2012) for the mean of m sets: every set
    is given 1 / m images more that only the one, and as many that only the other has right. So models that differ
    nowhere, or everywhere in the same way, have an interval that narrows with the images but is never of no width.
    """
    if one.keys() != other.keys() or any(one[name].keys() != other[name].keys() for name in one):
        raise ValueError("the two were not measured on the same images")
    only_one, only_other, p = {}, {}, {}
    observed: list[float] = []
    adjusted: list[float] = []
    variances: list[float] = []
    m = len(one)
    for name, rights in one.items():
        gained = sum(right and not other[name][image] for image, right in rights.items())
        lost = sum(other[name][image] and not right for image, right in rights.items())
        only_one[name], only_other[name], p[name] = gained, lost, mcnemar(gained, lost)
        observed.append((gained - lost) / len(rights))
        total = len(rights) + 2 / m
        adjusted.append((gained - lost) / total)
        variances.append(((gained + lost + 2 / m) / total - adjusted[-1] ** 2) / total)
    mean, centre = math.fsum(observed) / m, math.fsum(adjusted) / m
    half = Z / m * math.sqrt(math.fsum(variances))
    low, high = max(-1.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))
    return ImageDifference(mean, low, high, only_one, only_other, p)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p of McNemar's test (Psychometrika, 1947): are the two kinds of discordant images as frequent?"""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0


def holm(p: Sequence[float]) -> list[float]:
    """Values of p adjusted for their number, in their order. Holm, Scand. J. Stat. 6, 1979.

    However the tests depend on each other: that any true null hypothesis has an adjusted value of 0.05 or less happens
    with a probability of at most 5 %.
    """
    found, largest = [0.0] * len(p), 0.0
    for place, index in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - place) * p[index]))
        found[index] = largest
    return found


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
    """Mean of paired differences and their deviation; None where it gives no interval (see `seed_difference`)."""

    mean: float
    deviation: float | None
    n: int

    def interval(self, among: int = 1) -> tuple[float, float] | None:
        """Its t interval: this and `among` - 1 others all hold their truths with a probability of at least 95 %.

        Bonferroni's correction (Dunn, JASA 56, 1961, p. 52), which holds however they depend on each other. These do,
        in a way that nobody knows: all subtract the same runs, and clean and robust accuracy are of the same model.
        """
        if self.deviation is None:
            return None
        half = t_quantile(self.n - 1, each_of(among)) * self.deviation / math.sqrt(self.n)
        return self.mean - half, self.mean + half

    def separated(self, among: int = 1) -> bool:
        """Whether that interval leaves out 0."""
        interval = self.interval(among)
        return interval is not None and (interval[0] > 0 or interval[1] < 0)

    def record(self, among: int) -> dict[str, Any]:
        """As JSON values: the interval for itself alone, and the simultaneous one, which alone decides `separated`."""
        alone, together = self.interval(), self.interval(among)
        return {
            **asdict(self),
            "alone": alone and list(alone),
            "simultaneous": together and list(together),
            "separated": self.separated(among),
        }


def each_of(number: int) -> float:
    """The coverage of each of so many intervals that all hold with a probability of at least 95 %."""
    return 1 - (1 - COVERAGE) / max(1, number)


def spread(values: Sequence[float]) -> Spread:
    """Mean and standard deviation of at least one value."""
    n, mean = len(values), math.fsum(values) / len(values)
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1)) if n > 1 else None
    return Spread(mean, deviation, n)


def t_quantile(df: int, coverage: float = COVERAGE) -> float:
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
    silent = found.deviation is None or found.n < FEWEST_PAIRS or found.deviation < ROUNDING
    return SeedDifference(found.mean, None if silent else found.deviation, found.n)


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


def mean_accuracy(datasets: Mapping[str, Mapping[str, Mapping[str, Any]]], sets: Sequence[str], metric: str) -> float:
    """The unweighted mean over these sets."""
    return math.fsum(set_accuracy(datasets[name], metric) for name in sets) / len(sets)


def set_accuracy(scores: Mapping[str, Mapping[str, Any]], metric: str) -> float:
    """One dataset's accuracy, the mean over radii, from its scores by radius."""
    return sum(float(score[metric]) for score in scores.values()) / len(scores)
