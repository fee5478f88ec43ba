"""Means over sets and paired differences, against closed forms."""

from __future__ import annotations

import gzip

import numpy as np
import pytest
from scipy.stats import binomtest

from study.statistics import mcnemar, means, paired_difference, right_of_each
from tests.support.records import record


def test_a_mean_is_unweighted_over_sets_with_and_without_the_source() -> None:
    records = [record("imagenet", 900, 1000, 500), record("dtd", 50, 100, 10), record("pcam", 60, 100, 20)]
    found = {(mean.attack, mean.eps, mean.source): mean for mean in means(records, source=("imagenet",))}
    assert found["clean", None, True].accuracy == pytest.approx((0.9 + 0.5 + 0.6) / 3)
    assert found["pgd-20", "1/255", True].accuracy == pytest.approx((0.5 + 0.1 + 0.2) / 3)
    assert found["pgd-20", "1/255", False].accuracy == pytest.approx(0.15)
    assert found["pgd-20", "1/255", False].sets == ("dtd", "pcam")
    assert all(mean.low < mean.accuracy < mean.high for mean in found.values())


def test_without_a_source_set_there_is_one_mean_only() -> None:
    assert {mean.source for mean in means([record("dtd", 50, 100, 10)], source=("imagenet",))} == {True}


def test_the_interval_is_that_of_a_sum_of_binomials() -> None:
    """Standard error of the mean over sets: sqrt(sum p (1 - p) / n) / number of sets; 1.96 of it to both sides."""
    sets = {"a": (800, 400), "b": (2000, 200), "c": (500, 450)}
    records = [record(name, total, total, right) for name, (total, right) in sets.items()]
    (mean,) = [mean for mean in means(records) if mean.attack != "clean"]
    error = np.sqrt(sum(r / n * (1 - r / n) / n for n, r in sets.values())) / 3
    assert mean.low == pytest.approx(mean.accuracy - 1.96 * error, abs=0.03 * error + 1e-3)
    assert mean.high == pytest.approx(mean.accuracy + 1.96 * error, abs=0.03 * error + 1e-3)


def test_ninety_five_in_a_hundred_intervals_hold_the_truth() -> None:
    rng, hits = np.random.default_rng(1), 0
    for _ in range(200):
        drawn = [record(name, 300, 300, int(rng.binomial(300, p))) for name, p in (("a", 0.3), ("b", 0.6))]
        (mean,) = [mean for mean in means(drawn) if mean.attack != "clean"]
        hits += mean.low <= 0.45 <= mean.high
    assert 180 <= hits <= 199


def test_drawing_counts_is_drawing_images() -> None:
    """The bootstrap as it is usually written, image by image, has the same quantiles."""
    rng, sets = np.random.default_rng(2), {"a": (60, 20), "b": (150, 120)}
    images = [np.arange(n) < right for n, right in sets.values()]
    draws = [np.mean([np.mean(rng.choice(each, len(each))) for each in images]) for _ in range(4000)]
    low, high = np.quantile(draws, [0.025, 0.975])
    (mean,) = [mean for mean in means([record(s, n, n, r) for s, (n, r) in sets.items()]) if mean.attack != "clean"]
    assert (mean.low, mean.high) == (pytest.approx(low, abs=0.005), pytest.approx(high, abs=0.005))


def test_a_mean_over_fewer_sets_than_the_others_says_which_are_missing() -> None:
    records = [record("dtd", 50, 100, 10), record("pcam", 60, 100, 20), record("dtd", 50, 100, 5, attack="apgd")]
    missing = {(mean.attack, mean.source): mean.missing for mean in means(records, source=("pcam",))}
    assert missing["apgd-100", True] == ("pcam",)
    assert missing["pgd-20", True] == missing["clean", True] == ()
    assert missing["apgd-100", False] == ()


def test_clean_accuracy_is_that_of_the_larger_sample() -> None:
    records = [record("dtd", 500, 1000, 100), record("dtd", 70, 100, 10, attack="apgd")]
    clean = next(mean for mean in means(records) if mean.attack == "clean")
    assert clean.accuracy == 0.5
    assert {mean.attack for mean in means(records)} == {"clean", "pgd-20", "apgd-100"}


def test_one_image_and_all_right_have_an_interval_of_no_width() -> None:
    for mean in means([record("dtd", 1, 1, 1)]):
        assert (mean.low, mean.accuracy, mean.high) == (1.0, 1.0, 1.0)


def test_a_paired_difference_counts_images_that_only_one_has_right() -> None:
    one = {"a": {0: True, 1: True, 2: False, 3: True}, "b": {0: True, 1: False}}
    other = {"a": {0: True, 1: False, 2: True, 3: False}, "b": {0: True, 1: False}}
    found = paired_difference(one, other)
    assert found.mean == pytest.approx(((2 - 1) / 4 + 0) / 2)
    assert (found.only_one, found.only_other) == ({"a": 2, "b": 0}, {"a": 1, "b": 0})
    assert found.low < found.mean < found.high
    assert found.p["b"] == 1.0


def test_pairing_is_sharper_than_two_intervals() -> None:
    """Two models that differ on 20 of 1,000 images, all one way: surely different, though their intervals overlap."""
    one = {"a": {image: image < 520 for image in range(1000)}}
    other = {"a": {image: image < 500 for image in range(1000)}}
    found = paired_difference(one, other)
    assert found.mean == pytest.approx(0.02)
    assert 0.01 < found.low < found.high < 0.03
    assert found.p["a"] < 1e-5


def test_the_paired_interval_is_that_of_the_discordant_images() -> None:
    """Variance of a set's difference: (p_one + p_other - (p_one - p_other)^2) / n."""
    one = {name: {image: image < 700 for image in range(1000)} for name in "ab"}
    other = {name: {image: image >= 650 or image < 600 for image in range(1000)} for name in "ab"}
    found = paired_difference(one, other)
    error = np.sqrt(2 * (0.05 + 0.30 - 0.25**2) / 1000) / 2
    assert found.mean == pytest.approx(-0.25)
    assert found.low == pytest.approx(-0.25 - 1.96 * error, abs=0.03 * error + 1e-3)
    assert found.high == pytest.approx(-0.25 + 1.96 * error, abs=0.03 * error + 1e-3)


def test_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not measured on the same images"):
        paired_difference({"a": {0: True}}, {"a": {1: True}})


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(3, 1) == pytest.approx(2 * (1 + 4) / 16)
    assert mcnemar(2, 2) == 1.0
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(("gained", "lost"), [(60, 40), (1100, 900), (11_000, 9_000), (54_000, 54_000)])
def test_mcnemar_is_scipys_binomial_test_also_of_a_hundred_thousand_images(gained: int, lost: int) -> None:
    assert mcnemar(gained, lost) == pytest.approx(binomtest(gained, gained + lost).pvalue)


def test_a_table_of_images_says_who_is_right() -> None:
    text = "index,label,eps,clean_prediction,adversarial_prediction\n4,1,1/255,1,0\n7,2,1/255,2,2\n4,1,2/255,1,0\n"
    table = gzip.compress(text.encode())
    assert right_of_each(table, "1/255") == {4: False, 7: True}
    assert right_of_each(table, None) == {4: True, 7: True}
