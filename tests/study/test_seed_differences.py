"""Means over seeds, and paired differences with t intervals, alone and many together, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from study.statistics import SeedDifference, each_of, seed_difference, spread, t_quantile


# Two-sided 95 % points of Student's t, from printed tables.
@pytest.mark.parametrize(
    ("df", "value"),
    [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (10, 2.228), (30, 2.042), (500, 1.965)],
)
def test_t_quantiles_are_those_of_the_tables(df, value):
    assert t_quantile(df) == pytest.approx(value, abs=5e-4)


@pytest.mark.parametrize("p", [0.5, 0.9, 0.95, 0.99])
def test_t_quantiles_with_one_two_and_four_degrees_of_freedom_have_their_closed_forms(p):
    assert t_quantile(1, p) == pytest.approx(math.tan(math.pi / 2 * p), rel=1e-12)
    assert t_quantile(2, p) == pytest.approx(p * math.sqrt(2 / (1 - p * p)), rel=1e-12)
    root = math.sqrt(1 - p * p)
    cosine = math.cos(math.acos(root) / 3) / root
    assert t_quantile(4, p) == pytest.approx(2 * math.sqrt(cosine - 1), rel=1e-12)


def test_spread_is_the_sample_deviation():
    found = spread([0.1, 0.2, 0.3])
    assert (found.mean, found.deviation, found.n) == (pytest.approx(0.2), pytest.approx(0.1), 3)
    assert spread([0.5]).deviation is None


def test_a_paired_difference_uses_the_common_seeds_and_their_own_pairs():
    own, other = {1: 0.50, 2: 0.61, 3: 0.72, 9: 0.0}, {1: 0.40, 2: 0.50, 3: 0.60, 8: 1.0}
    found = seed_difference(own, other)
    # differences 0.10, 0.11, 0.12: mean 0.11, deviation 0.01, half width 4.303 * 0.01 / sqrt(3)
    assert found is not None
    assert (found.mean, found.n) == (pytest.approx(0.11), 3)
    assert found.interval() == pytest.approx((0.11 - 4.30265 * 0.01 / math.sqrt(3), 0.11 + 0.0248414), rel=1e-4)
    assert found.separated()
    assert seed_difference({1: 0.5}, {2: 0.5}) is None
    assert not SeedDifference(0.1, 0.1, 3).separated()


def test_there_is_no_interval_without_a_spread_or_from_two_seeds():
    other = {1: 0.30, 2: 0.31, 3: 0.32, 4: 0.2}
    same = seed_difference({seed: value + 0.1 for seed, value in other.items()}, other)
    two = seed_difference({1: 0.50, 2: 0.61}, {1: 0.40, 2: 0.50})
    for found, mean in ((same, 0.1), (two, 0.105)):
        assert found is not None
        assert found.mean == pytest.approx(mean)
        assert (found.interval(), found.interval(8), found.separated()) == (None, None, False)


def test_of_eight_intervals_each_is_taken_with_an_eighth_of_the_error():
    found = SeedDifference(0.0235, 0.01605, 5)
    low, high = found.interval(among=8)
    assert (high - low) / 2 == pytest.approx(t_quantile(4, 1 - 0.05 / 8) * 0.01605 / math.sqrt(5))
    assert t_quantile(4, 1 - 0.05 / 8) == pytest.approx(5.2611, abs=5e-4)
    assert found.separated()
    assert not found.separated(among=8)
    kept = found.record(8)
    assert (kept["alone"], kept["simultaneous"]) == (list(found.interval()), [low, high])
    assert not kept["separated"]


def test_equal_methods_are_separated_somewhere_in_one_comparison_of_twenty_at_most():
    """Four methods against one, clean and robust, five seeds: the reference's runs are in all differences."""
    rng, number = np.random.default_rng(3), 20_000
    runs = rng.normal(size=(number, 5, 2, 5)) + 0.5 * rng.normal(size=(number, 5, 1, 5))
    differences = (runs[:, 1:] - runs[:, :1]).reshape(number, 8, 5)
    t = np.abs(differences.mean(2)) / (differences.std(2, ddof=1) / math.sqrt(5))
    alone, together = ((t > t_quantile(4, each_of(among))).any(1).mean() for among in (1, 8))
    assert alone > 0.2
    assert together <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / number)
