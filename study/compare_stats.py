"""Arithmetic of a comparison: means over seeds, paired differences with t intervals, and what a method costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from trainers.config import AttackConfig
from trainers.objectives import METHODS, Objective

__all__ = [
    "FEWEST_PAIRS",
    "METRICS",
    "SeedDifference",
    "Spread",
    "differences",
    "update_passes",
    "set_accuracy",
    "spread",
    "t_quantile",
]

METRICS = ("clean_accuracy", "robust_accuracy")
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


def _t_below(t: float, df: int) -> float:
    """P(-t < T < t) of Student's t with `df` degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    theta = math.atan2(t, math.sqrt(df))
    cos2 = math.cos(theta) ** 2
    odd = df % 2
    term = math.cos(theta) if odd else 1.0
    total = term if df > 1 else 0.0
    for k in range(3 if odd else 2, df - 1, 2):
        term *= cos2 * (k - 1) / k
        total += term
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total


def t_quantile(df: int, coverage: float = 0.95) -> float:
    """The t with P(-t < T < t) = coverage: 12.706 for one degree of freedom, 1.960 for many."""
    if df < 1 or not 0 < coverage < 1:
        raise ValueError(f"need df >= 1 and 0 < coverage < 1; got {df} and {coverage}")
    low, high = 0.0, 1.0
    while _t_below(high, df) < coverage:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_below(middle, df) < coverage else (low, middle)
    return high


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


def differences(
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


def update_passes(method: Mapping[str, Any], attack: Mapping[str, Any]) -> dict[str, float]:
    """Encoder passes an image and update, in units of one forward; a backward to images or to weights is one too.

    An attack step is a forward and a backward to the image; the update on the attacked image is a forward and both
    backwards, and on the clean image, where a term needs it, the same again. Embeddings of clean images by the teacher
    are computed once for all epochs and trials, and count 0; whatever else it computes counts.
    """
    settings = AttackConfig.model_validate(attack)
    own = METHODS[method["name"]].model_validate(method)
    guide, clean = _weights(own)
    found = {
        "teacher": 1.0 if own.needs_teacher and guide else 0.0,
        "attack": 2.0 * settings.steps * settings.restarts + (settings.restarts if settings.restarts > 1 else 0),
        "update": 3.0 + (0 if not clean else 1 if getattr(own, "detach_clean", False) else 3),
    }
    return {**found, "total": sum(found.values())}


def _weights(own: Objective) -> tuple[float, float]:
    """What the teacher's output weighs in the loss, where it is computed anew, and what the clean image's terms weigh.

    A term of weight 0 is not computed. TGA-ZSR's `weights` resolve its null for the paper's.
    """
    pair: tuple[float, float] | None = getattr(own, "weights", None)
    if pair:
        return sum(pair), pair[1]
    return getattr(own, "adversarial_weight", 1.0), getattr(own, "clean_weight", 0.0)
