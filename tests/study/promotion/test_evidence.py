"""The one-sided bound on a difference of two models: closed forms, and its errors, summed over every outcome."""

from __future__ import annotations

import itertools
import math
from statistics import NormalDist

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import gammaln

from study.promotion.evidence import Bound, bound, sums_of

LEVELS = (0.05, 0.01, 1e-3, 1e-4, 1e-6)
DIFFERING = (0.001, 0.01, 0.03, 0.1, 0.3, 0.7, 1.0)
DIRECTIONS = (-1.0, -0.5, 0.0, 0.5, 1.0)  # of the images that differ: all worse, as many worse as better, all better


def scores(right: int, wrong: int) -> NDArray[np.float64]:
    return np.array([1.0] * right + [0.0] * wrong)


def of(one: dict[str, NDArray[np.float64]], other: dict[str, NDArray[np.float64]], level: float = 0.05) -> Bound:
    return bound(sums_of(one, other), level)


def test_its_closed_form_on_one_set():
    """12 images better, 5 worse, of 100: the two terms as written down."""
    one = np.array([1.0] * 72 + [0.0] * 28)
    other = np.array([1.0] * 60 + [0.0] * 12 + [1.0] * 5 + [0.0] * 23)
    z = NormalDist().inv_cdf(0.99)
    width = z * math.sqrt((12 + 5 + 2) / 100**2) + z**2 / 200
    found = of({"a": one}, {"a": other}, 0.01)
    assert (found.mean, found.lower, found.upper) == pytest.approx((0.07, 0.07 - width, 0.07 + width))
    assert sums_of({"a": one}, {"a": other})["a"] == {"images": 100, "sum": 7, "squares": 17, "better": 12, "worse": 5}


def test_two_models_that_differ_nowhere_still_have_a_bound_that_narrows_with_the_images():
    widths = [of(same, same).upper for n in (48, 480, 4800) if (same := {"a": scores(n // 2, n // 2)})]
    z = NormalDist().inv_cdf(0.95)
    assert widths == [pytest.approx((z * math.sqrt(2) + z**2 / 2) / n) for n in (48, 480, 4800)]


def test_sets_weigh_the_same_whatever_their_size():
    big, small = np.zeros(900), np.zeros(100)
    found = of({"big": big, "small": small + 1}, {"big": big, "small": small})
    assert found.mean == pytest.approx(0.5)
    z = NormalDist().inv_cdf(0.95)
    width = z * math.sqrt(2 / 900**2 + 102 / 100**2) / 2 + z**2 / (2 * 2 * 100)
    assert found.mean - found.lower == pytest.approx(width)


def test_one_less_other_is_the_negative_of_other_less_one():
    rng = np.random.default_rng(0)
    one, other = ({"a": rng.integers(0, 4, 200) / 3, "b": rng.integers(0, 2, 50) / 1.0} for _ in range(2))
    forth, back = of(one, other), of(other, one)
    assert (forth.mean, forth.lower, forth.upper) == pytest.approx((-back.mean, -back.upper, -back.lower))


def test_other_images_are_refused():
    for other in ({"b": np.zeros(3)}, {"a": np.zeros(4)}, {}):
        with pytest.raises(ValueError, match="not measured on the same images"):
            sums_of({"a": np.zeros(3)}, other)


# Errors: every outcome of n images, with its probability; how often the bound is above the truth, exactly.


def outcomes(n: int, values: NDArray[np.float64]) -> NDArray[np.int64]:
    """[outcomes, values]: on how many of n images the difference has each value."""
    found = itertools.combinations(range(n + len(values) - 1), len(values) - 1)
    if len(values) == 3:
        better, worse = (each.ravel() for each in np.meshgrid(np.arange(n + 1), np.arange(n + 1), indexing="ij"))
        fits = better + worse <= n
        return np.stack([worse[fits], (n - better - worse)[fits], better[fits]], axis=1)
    bars = np.array(list(found))
    ends = np.concatenate([np.full((len(bars), 1), -1), bars, np.full((len(bars), 1), n + len(values) - 1)], axis=1)
    return np.diff(ends, axis=1) - 1


def chances(counts: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of each outcome, when a share of images has each value."""
    log = gammaln(counts[0].sum() + 1) - gammaln(counts + 1).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        log += np.where(counts > 0, counts * np.log(shares), 0.0).sum(axis=1)
    return np.exp(log)


def lower(counts: list[NDArray[np.int64]], values: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """The bound of each outcome; of two sets, of each pair of outcomes. The code's own arithmetic, on arrays."""
    found = [(each @ values, each @ values**2, int(each[0].sum())) for each in counts]
    if len(found) == 2:
        (sum_a, squares_a, n_a), (sum_b, squares_b, n_b) = found
        pairs = np.meshgrid(np.arange(len(sum_a)), np.arange(len(sum_b)), indexing="ij")
        a, b = (place.ravel() for place in pairs)
        found = [(sum_a[a], squares_a[a], n_a), (sum_b[b], squares_b[b], n_b)]
    sets = {str(place): {"images": n, "sum": s, "squares": q} for place, (s, q, n) in enumerate(found)}
    z, number = NormalDist().inv_cdf(1 - level), len(sets)
    mean = sum(each["sum"] / each["images"] for each in sets.values()) / number
    variance = sum((each["squares"] + 2) / each["images"] ** 2 for each in sets.values()) / number**2
    return mean - z * np.sqrt(variance) - z**2 / (2 * number * min(each["images"] for each in sets.values()))


def test_the_arrays_of_these_tests_are_the_codes_own_bound():
    values, counts = np.array([-1.0, 0.0, 1.0]), outcomes(12, np.array([-1.0, 0.0, 1.0]))
    found = lower([counts], values, 0.01)
    for place in (0, 17, len(counts) - 1):
        worse, same, better = counts[place]
        difference = np.array([-1.0] * worse + [0.0] * same + [1.0] * better)
        assert found[place] == pytest.approx(of({"a": difference}, {"a": np.zeros(12)}, 0.01).lower)


THREE = np.array([-1.0, 0.0, 1.0])
MODELS = [
    np.array([q * (1 - s) / 2, 1 - q, q * (1 + s) / 2]) for q, s in itertools.product(DIFFERING, DIRECTIONS)
]  # fmt: skip


@pytest.mark.parametrize("n", [30, 100, 400])
def test_on_one_set_its_error_is_never_above_its_level(n):
    counts = outcomes(n, THREE)
    bounds = {level: lower([counts], THREE, level) for level in LEVELS}
    for shares in MODELS:
        chance, truth = chances(counts, shares), shares @ THREE
        for level, found in bounds.items():
            assert chance[found > truth + 1e-12].sum() <= level, (shares, level)


@pytest.mark.parametrize("sizes", [(30, 30), (20, 60)])
def test_on_two_sets_its_error_is_never_above_its_level(sizes):
    counts = [outcomes(n, THREE) for n in sizes]
    bounds = {level: lower(counts, THREE, level) for level in LEVELS}
    for one, other in itertools.product(MODELS[::4], MODELS[::3]):
        chance = np.outer(chances(counts[0], one), chances(counts[1], other)).ravel()
        truth = (one @ THREE + other @ THREE) / 2
        for level, found in bounds.items():
            assert chance[found > truth + 1e-12].sum() <= level, (one, other, level)


def test_over_two_radii_its_error_is_never_above_its_level():
    five = np.array([-1.0, -0.5, 0.0, 0.5, 1.0])
    counts = outcomes(24, five)
    bounds = {level: lower([counts], five, level) for level in LEVELS}
    rng = np.random.default_rng(0)
    for weights in ([0.1, 0.1, 3, 0.1, 0.1], [0.02, 0.3, 5, 0.3, 0.02], [1, 1, 1, 1, 1], [0.05, 0.5, 2, 0.05, 0.01]):
        for shares in rng.dirichlet(weights, 20):
            chance, truth = chances(counts, shares), shares @ five
            for level, found in bounds.items():
                assert chance[found > truth + 1e-12].sum() <= level, (shares, level)


def test_without_its_second_term_it_would_err():
    """What these tests can tell apart: 300 images, 3 % of them worse and none better."""
    counts = outcomes(300, THREE)
    shares, level = np.array([0.03, 0.97, 0.0]), 1e-4
    z = NormalDist().inv_cdf(1 - level)
    chance, found = chances(counts, shares), lower([counts], THREE, level)
    assert chance[found + z**2 / 600 > -0.03].sum() > 5 * level
    assert chance[found > -0.03].sum() <= level
