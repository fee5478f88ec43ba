"""What many replays say together: means, paired comparisons and times to a target, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench.search_replay import Replay

Numbers = NDArray[np.float64]
RESAMPLES = 2000
CURVE_POINTS = 65


def summarise(
    runs: Mapping[str, Sequence[Replay]], *, budgets: Sequence[int], unit_seconds: float, reference: str
) -> dict[str, Any]:
    """Per method: value at every budget, comparison with `reference` seed by seed, compute to its final best.

    Compute is time in units of `unit_seconds`. The target is the median of the reference's values at the last budget;
    a search that does not reach it by then is censored there: its time is greater than the last budget. Methods may
    have been run with fewer seeds, the first ones: those are compared that both have, and ranked that all have.
    """
    at = {
        name: np.array([[run.at(b * unit_seconds) for b in budgets] for run in found]) for name, found in runs.items()
    }
    target = float(np.median(at[reference][:, -1]))
    common = min(map(len, at.values()))
    ranks = mean_ranks({name: values[:common, -1] for name, values in at.items()})
    grid = np.linspace(0, budgets[-1], CURVE_POINTS)
    methods = {}
    for name, found in runs.items():
        curves = np.array([[run.at(x * unit_seconds) for x in grid] for run in found])
        low, high = interval(curves)
        ours, theirs = (values[: min(len(found), len(at[reference])), -1] for values in (at[name], at[reference]))
        methods[name] = {
            "seeds": len(found),
            "budgets": [_mean(at[name][:, place]) for place in range(len(budgets))],
            "wins": None if name == reference else wins(ours, theirs),
            "difference": None if name == reference else _mean(ours - theirs),
            "rank": ranks[name],
            "reach": reach(np.array([time_to(run, target) / unit_seconds for run in found]), budgets[-1]),
            "claimed": float(np.mean([run.claimed for run in found])),
            "complete": float(np.mean([run.complete for run in found])),
            "pruned": float(np.mean([run.pruned for run in found])),
            "curve": {"mean": curves.mean(0).tolist(), "low": low.tolist(), "high": high.tolist()},
        }
    return {"budgets": list(budgets), "target": target, "compute": grid.tolist(), "methods": methods}


def interval(samples: Numbers, statistic: Any = np.mean, level: float = 0.95) -> tuple[Any, Any]:
    """Percentile bootstrap interval of a statistic over the first axis."""
    generator = np.random.default_rng(0)
    chosen = generator.integers(len(samples), size=(RESAMPLES, len(samples)))
    resampled = np.stack([statistic(samples[rows], axis=0) for rows in chosen])
    tail = (1 - level) / 2
    return tuple(np.quantile(resampled, [tail, 1 - tail], axis=0, method="inverted_cdf"))


def _mean(values: Numbers) -> dict[str, float]:
    low, high = interval(values)
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def time_to(run: Replay, target: float) -> float:
    """When the incumbent first was as good as the target; infinite if it never was."""
    return next((time for time, value in zip(run.times, run.values, strict=True) if value >= target), float("inf"))


def reach(times: Numbers, horizon: float) -> dict[str, Any]:
    """Median of right-censored times (all at the same horizon, so no estimator is needed below one half)."""

    def known(value: float) -> float | None:
        return float(value) if value <= horizon else None

    low, high = interval(times, lambda rows, axis: np.quantile(rows, 0.5, axis=axis, method="inverted_cdf"))
    median = np.quantile(times, 0.5, method="inverted_cdf")
    return {
        "median": known(median),
        "low": known(low),
        "high": known(high),
        "reached": float((times <= horizon).mean()),
    }


def wins(ours: Numbers, theirs: Numbers) -> dict[str, int]:
    """Seed by seed."""
    return {
        "better": int((ours > theirs).sum()),
        "same": int((ours == theirs).sum()),
        "worse": int((ours < theirs).sum()),
    }


def mean_ranks(values: Mapping[str, Numbers]) -> dict[str, float]:
    """Mean place among the methods, 1 is best; equal values share the mean of their places."""
    table = np.stack(list(values.values()))  # methods x seeds
    better = (table[None] > table[:, None]).sum(1)
    same = (table[None] == table[:, None]).sum(1)
    return dict(zip(values, (better + (same + 1) / 2).mean(1).tolist(), strict=True))
