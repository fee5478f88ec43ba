"""Draws that are keyed by (study seed, trial number, path), so that a new parameter leaves the others' draws alone."""

from __future__ import annotations

import hashlib
import math
import warnings
from collections.abc import Sequence
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

__all__ = ["number_of", "sobol_point", "uniform", "value_at"]


def number_of(*key: object) -> int:
    """A 64-bit number that depends on nothing but the key."""
    return int.from_bytes(hashlib.sha256("/".join(map(str, key)).encode()).digest()[:8], "big")


def uniform(*key: object) -> float:
    """In [0, 1)."""
    return (number_of(*key) >> 11) / 2**53


def sobol_point(dimensions: int, index: int, seed: int) -> Sequence[float]:
    """Point `index` of a scrambled Sobol sequence in [0, 1)^dimensions (Owen 1998; scipy's)."""
    from scipy.stats import qmc  # takes a second to import, and only one sampler needs it

    engine = qmc.Sobol(dimensions, scramble=True, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about balance, of points that are asked for one by one
        if index:
            engine.fast_forward(index)
        point = engine.random(1)[0]
    return [float(value) for value in point]


def value_at(distribution: BaseDistribution, place: float) -> Any:
    """The value at a place in [0, 1) of a distribution: uniform places give its own distribution."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices[int(place * len(distribution.choices))]
    assert isinstance(distribution, FloatDistribution | IntDistribution), distribution
    low, high, step = distribution.low, distribution.high, distribution.step
    if distribution.log:
        half = 0.5 if isinstance(distribution, IntDistribution) else 0.0
        value = math.exp(math.log(low - half) + place * (math.log(high + half) - math.log(low - half)))
        value = round(value) if half else value
    elif step is not None:
        value = low + step * int(place * (round((high - low) / step) + 1))
    else:
        value = low + place * (high - low)
    return min(max(value, low), high)
