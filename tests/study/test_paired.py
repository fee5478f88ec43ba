"""The one-sided bound on a difference of two models, against closed forms and against what it promises."""

from __future__ import annotations

import math

import numpy as np
import pytest

from study.statistics import Z, paired


def scores(right: int, wrong: int) -> np.ndarray:
    return np.array([1.0] * right + [0.0] * wrong)


def test_with_scores_of_0_and_1_it_is_bonett_and_prices_interval():
    one = np.array([1.0] * 60 + [1.0] * 12 + [0.0] * 5 + [0.0] * 23)
    other = np.array([1.0] * 60 + [0.0] * 12 + [1.0] * 5 + [0.0] * 23)
    found = paired({"a": one}, {"a": other})
    p12, p21, n = (12 + 1) / 102, (5 + 1) / 102, 100
    centre, width = p12 - p21, Z * math.sqrt((p12 + p21 - (p12 - p21) ** 2) / (n + 2))
    assert found.mean == pytest.approx(0.07)
    assert (found.lower, found.upper) == (pytest.approx(centre - width), pytest.approx(centre + width))
    assert (found.better, found.worse, found.images) == (12, 5, 100)


def test_two_models_that_differ_nowhere_still_have_a_bound_that_narrows_with_the_images():
    widths = [paired({"a": scores(n // 2, n // 2)}, {"a": scores(n // 2, n // 2)}).upper for n in (48, 480, 4800)]
    assert widths == [pytest.approx(Z * math.sqrt(2) / (n + 2)) for n in (48, 480, 4800)]


def test_sets_weigh_the_same_whatever_their_size_and_the_bound_is_stratified():
    big, small = np.zeros(900), np.zeros(100)
    found = paired({"big": big, "small": small + 1}, {"big": big, "small": small})
    assert found.mean == pytest.approx(0.5)
    alone = [paired({"x": values + shift}, {"x": values}) for values, shift in ((big, 0), (small, 1))]
    widths = [(each.upper - each.lower) / 2 for each in alone]
    assert (found.upper - found.lower) / 2 == pytest.approx(math.hypot(*widths) / 2)


def test_one_less_other_is_the_negative_of_other_less_one():
    rng = np.random.default_rng(0)
    one, other = ({"a": rng.integers(0, 4, 200) / 3, "b": rng.integers(0, 2, 50) / 1.0} for _ in range(2))
    forth, back = paired(one, other), paired(other, one)
    assert (forth.mean, forth.lower, forth.upper) == pytest.approx((-back.mean, -back.upper, -back.lower))


def test_other_images_are_refused():
    for other in ({"b": np.zeros(3)}, {"a": np.zeros(4)}, {}):
        with pytest.raises(ValueError, match="not measured on the same images"):
            paired({"a": np.zeros(3)}, other)


@pytest.mark.parametrize("n", [48, 300])
@pytest.mark.parametrize(("gained", "lost"), [(0.02, 0.02), (0.10, 0.06), (0.01, 0.05), (0.25, 0.25)])
def test_the_truth_lies_above_the_bound_in_about_one_of_twenty_draws(n, gained, lost):
    """4,000 draws of n pairs: 5 % and what is left of the normal approximation (three standard errors: 1 %)."""
    rng = np.random.default_rng(7)
    draws = rng.multinomial(n, [gained, lost, 1 - gained - lost], 4000)
    above = 0
    for up, down, _ in draws:
        difference = np.array([1.0] * up + [-1.0] * down + [0.0] * (n - up - down))
        above += paired({"a": difference}, {"a": np.zeros(n)}).upper < gained - lost
    assert above / len(draws) < 0.065
