"""Which searched parameters moved the result, and how sure that is.

A random forest (Breiman 2001) is fitted to accuracy over parameters. A parameter's importance is its total-effect
index (Sobol; Jansen 1999, Comput. Phys. Commun. 117) on the forest's surface over the search space: the share of the
surface's variance that remains when everything but this parameter is fixed. Interactions count for each parameter
that takes part, so the shares may add up to more than 1.

Only full-length trials enter: the accuracy of a stopped trial belongs to another training length. Trials below a floor
do enter; without them the parameter that breaks the floor would look harmless. Uncertainty: the forest is fitted
again to resampled trials (bootstrap). A column of random numbers is fitted along: what does not rise above it is not
told from noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from study.results.facts import METRICS, Trial
from study.spec.dimension import Dimension

MIN_TRIALS = 10
BOOTSTRAPS, TREES, POINTS = 24, 24, 128
FULL_TREES = 100
MISSING = -0.5  # below the unit interval, where a tree can split it off
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Importance:
    """Share of the variance over the search space; median, 5 % and 95 % quantile over the resampled trials."""

    path: str
    share: float
    low: float
    high: float
    above_noise: bool


@dataclass(frozen=True)
class Importances:
    """Of one metric. `entries` is empty when there are too few trials, and `note` says so, or what to doubt.

    `noise` is the 95 % quantile of what a column of random numbers gets; `r2` is the forest's coefficient of
    determination on trials that it did not see (out of bag), None without a forest.
    """

    metric: str
    trials: int
    entries: tuple[Importance, ...]
    noise: float | None
    r2: float | None
    note: str


def importances(
    trials: Sequence[Trial], dimensions: Sequence[Dimension], *, also: Sequence[str] = (), seed: int = 0
) -> tuple[Importances, ...]:
    """One `Importances` for each accuracy and each metric of `also`, the parameters by falling share."""
    metrics = (*METRICS, *also)
    complete = [trial for trial in trials if trial.state == "complete" and trial.robust_accuracy is not None]
    note = _too_few(complete, dimensions)
    if note:
        return tuple(Importances(metric, len(complete), (), None, None, note) for metric in metrics)
    features = np.column_stack([_column(dimension, complete) for dimension in dimensions])
    return tuple(
        _of_metric(metric, features, np.array([getattr(trial, metric) for trial in complete]), dimensions, seed)
        for metric in metrics
    )


def _too_few(complete: Sequence[Trial], dimensions: Sequence[Dimension]) -> str:
    if not dimensions:
        return "nothing is searched"
    if len(complete) < MIN_TRIALS:
        return f"too few trials: {len(complete)} of at least {MIN_TRIALS} at full length"
    return ""


def _column(dimension: Dimension, trials: Sequence[Trial]) -> Array:
    return np.array([_unit(dimension, trial.params.get(dimension.path)) for trial in trials])


def _unit(dimension: Dimension, value: Any) -> float:
    """The value's place in its range, 0 to 1, on the search's own scale; `MISSING` for one that was not sampled."""
    if value is None:
        return MISSING
    distribution = dimension.distribution
    if isinstance(distribution, CategoricalDistribution):
        return distribution.choices.index(value) / max(1, len(distribution.choices) - 1)
    assert isinstance(distribution, FloatDistribution | IntDistribution), distribution
    low, high = float(distribution.low), float(distribution.high)
    if distribution.log:
        return float(np.log(value / low) / np.log(high / low))
    return (float(value) - low) / (high - low)


def _of_metric(metric: str, features: Array, values: Array, dimensions: Sequence[Dimension], seed: int) -> Importances:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.metrics import r2_score

    random = np.random.default_rng(seed)
    if np.ptp(values) == 0:
        return Importances(metric, len(values), (), None, None, "every trial has the same accuracy")
    full = RandomForestRegressor(FULL_TREES, max_features=1.0, oob_score=True, random_state=seed).fit(features, values)
    seen = np.isfinite(full.oob_prediction_)
    r2 = float(r2_score(values[seen], full.oob_prediction_[seen]))
    shares = np.array([_shares(features, values, dimensions, random) for _ in range(BOOTSTRAPS)])
    middle, low, high = (np.quantile(shares, q, axis=0) for q in (0.5, 0.05, 0.95))
    noise = float(high[-1])
    entries = [
        Importance(d.path, float(middle[i]), float(low[i]), float(high[i]), bool(middle[i] > noise))
        for i, d in enumerate(dimensions)
    ]
    note = "" if r2 > 0 else "the forest predicts unseen trials no better than their mean does: nothing can be read off"
    ordered = tuple(sorted(entries, key=lambda entry: -entry.share))
    return Importances(metric, len(values), ordered, noise, r2, note)


def _shares(features: Array, values: Array, dimensions: Sequence[Dimension], random: np.random.Generator) -> Array:
    """Total-effect shares of every parameter, and of the random column, on one resample of the trials."""
    from sklearn.ensemble import RandomForestRegressor

    picked = random.integers(len(values), size=len(values))
    noisy = np.column_stack([features, random.uniform(size=len(values))])[picked]
    forest = RandomForestRegressor(TREES, max_features=1.0, random_state=int(random.integers(2**31))).fit(
        noisy, values[picked]
    )
    points, again = _points(features, dimensions, random), _points(features, dimensions, random)
    width = points.shape[1]
    changed = np.repeat(points[None], width + 1, axis=0)
    for column in range(width):  # a parameter that this point does not have stays away
        present = points[:, column] > MISSING
        changed[column + 1, present, column] = np.maximum(again[present, column], 0.0)
    surface = forest.predict(changed.reshape(-1, width)).reshape(width + 1, -1)
    variance = surface[0].var()
    if variance == 0:
        return np.zeros(width)
    shares: Array = ((surface[1:] - surface[0]) ** 2).mean(axis=1) / (2 * variance)
    return np.minimum(shares, 1.0)


def _points(features: Array, dimensions: Sequence[Dimension], random: np.random.Generator) -> Array:
    """Points spread evenly over the search space; which parameters one lacks is copied from a trial."""
    columns = [*(_spread(d, random) for d in dimensions), random.uniform(size=POINTS)]
    points = np.column_stack(columns)
    absent = features[random.integers(len(features), size=POINTS)] == MISSING
    points[:, :-1][absent] = MISSING
    return points


def _spread(dimension: Dimension, random: np.random.Generator) -> Array:
    distribution = dimension.distribution
    if isinstance(distribution, CategoricalDistribution):
        steps = max(1, len(distribution.choices) - 1)
        return random.integers(len(distribution.choices), size=POINTS) / steps
    return random.uniform(size=POINTS)
