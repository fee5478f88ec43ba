"""Means over sets and paired differences, against closed forms."""

from __future__ import annotations

import gzip

import numpy as np
import pytest

from study.statistics import holm, image_difference, mcnemar, mean_interval, means, right_of_each
from tests.support.records import record
from trainers.evaluation.record import Proportion


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


def test_of_one_set_it_is_agresti_and_coulls() -> None:
    low, high = mean_interval([Proportion.of(45, 50)])
    p = 47 / 54
    half = 1.959964 * np.sqrt(p * (1 - p) / 54)
    assert (low, high) == (pytest.approx(p - half), pytest.approx(p + half))


@pytest.mark.parametrize("right", [0, 30])
def test_sets_on_which_all_images_or_none_are_right_have_an_interval_that_narrows_with_their_number(right: int) -> None:
    widths = []
    for sets in (1, 3, 15):
        low, high = mean_interval([Proportion.of(right, 30)] * sets)
        assert 0 <= low <= right / 30 <= high <= 1
        widths.append(high - low)
    assert widths[0] > widths[1] > widths[2] > 0


# What it promises, 0.95, is kept to within 0.02: the counts are whole numbers, so no interval keeps it exactly.
SHARES = [
    *([p] * sets for p in (0.0, 0.01, 0.5, 0.99, 1.0) for sets in (1, 3, 15)),
    [0.0, 0.5, 1.0], [0.01, 0.3, 0.99], [0.0] * 5 + [0.01] * 5 + [0.9] * 5,
]  # fmt: skip


@pytest.mark.parametrize("n", [10, 30, 100, 500])
@pytest.mark.parametrize("shares", SHARES, ids=lambda shares: f"{len(shares)}x{shares[0]}-{shares[-1]}")
def test_ninety_five_in_a_hundred_intervals_of_a_mean_hold_the_truth(shares: list[float], n: int) -> None:
    truth, number = sum(shares) / len(shares), 4000
    drawn = np.sort(np.random.default_rng(n).binomial(n, shares, (number, len(shares))), axis=1)
    counts, times = np.unique(drawn, axis=0, return_counts=True)  # the order of equal sets does not matter
    hits = 0
    for row, each in zip(counts.tolist(), times.tolist(), strict=True):
        low, high = mean_interval([PROPORTIONS[n][right] for right in row])
        hits += each * (low - 1e-12 <= truth <= high + 1e-12)
    assert hits / number >= 0.95 - 0.02 - 0.005, "0.005: of so many draws, 1.5 standard errors"


PROPORTIONS = {n: [Proportion.of(right, n) for right in range(n + 1)] for n in (10, 30, 100, 500)}


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


def test_one_image_that_is_right_says_next_to_nothing() -> None:
    for mean in means([record("dtd", 1, 1, 1)]):
        assert (mean.accuracy, mean.high) == (1.0, 1.0)
        assert mean.low < 0.3


def test_a_paired_difference_counts_images_that_only_one_has_right() -> None:
    one = {"a": {0: True, 1: True, 2: False, 3: True}, "b": {0: True, 1: False}}
    other = {"a": {0: True, 1: False, 2: True, 3: False}, "b": {0: True, 1: False}}
    found = image_difference(one, other)
    assert found.mean == pytest.approx(((2 - 1) / 4 + 0) / 2)
    assert (found.only_one, found.only_other) == ({"a": 2, "b": 0}, {"a": 1, "b": 0})
    assert found.low < found.mean < found.high
    assert found.p["b"] == 1.0


def test_pairing_is_sharper_than_two_intervals() -> None:
    """Two models that differ on 20 of 1,000 images, all one way: surely different, though their intervals overlap."""
    one = {"a": {image: image < 520 for image in range(1000)}}
    other = {"a": {image: image < 500 for image in range(1000)}}
    found = image_difference(one, other)
    assert found.mean == pytest.approx(0.02)
    assert 0.01 < found.low < found.high < 0.03
    assert found.p["a"] < 1e-5


def test_the_paired_interval_is_that_of_the_discordant_images() -> None:
    """Variance of a set's difference: (p_one + p_other - (p_one - p_other)^2) / n."""
    one = {name: {image: image < 700 for image in range(1000)} for name in "ab"}
    other = {name: {image: image >= 650 or image < 600 for image in range(1000)} for name in "ab"}
    found = image_difference(one, other)
    error = np.sqrt(2 * (0.05 + 0.30 - 0.25**2) / 1000) / 2
    assert found.mean == pytest.approx(-0.25)
    assert found.low == pytest.approx(-0.25 - 1.96 * error, abs=0.03 * error + 1e-3)
    assert found.high == pytest.approx(-0.25 + 1.96 * error, abs=0.03 * error + 1e-3)


@pytest.mark.parametrize("sets", [1, 3, 15])
def test_models_that_differ_nowhere_or_everywhere_have_an_interval_nevertheless(sets: int) -> None:
    right, wrong = ({str(name): dict.fromkeys(range(40), value) for name in range(sets)} for value in (True, False))
    same, best = image_difference(right, right), image_difference(right, wrong)
    assert (same.mean, best.mean, best.high) == (0.0, 1.0, 1.0)
    assert -0.2 < same.low < 0 < same.high < 0.2
    assert 0.8 < best.low < 1


@pytest.mark.parametrize("n", [30, 100])
@pytest.mark.parametrize("sets", [1, 5])
@pytest.mark.parametrize("shares", [(0, 0), (0.01, 0.01), (0.02, 0), (0.05, 0.3), (0.5, 0.5), (0.98, 0.01), (1, 0)])
def test_ninety_five_in_a_hundred_paired_intervals_hold_the_truth(
    shares: tuple[float, float], sets: int, n: int
) -> None:
    """`shares`: of images that only the one, only the other has right, in truth."""
    gained, lost = shares
    rng, truth, hits, number = np.random.default_rng(5), gained - lost, 0, 400
    for drawn in rng.multinomial(n, [gained, lost, max(0.0, 1 - gained - lost)], (number, sets)):
        one = {str(place): dict(enumerate([True] * a + [False] * (n - a))) for place, (a, _, _) in enumerate(drawn)}
        other = {
            str(place): dict(enumerate([False] * a + [True] * b + [False] * (n - a - b)))
            for place, (a, b, _) in enumerate(drawn)
        }
        found = image_difference(one, other)
        hits += found.low - 1e-12 <= truth <= found.high + 1e-12
    assert hits / number >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / number)


def test_holms_adjustment_by_hand() -> None:
    """The four smallest of five times 5, 4, 3, 2, never less than the one before, and at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005, 0.8]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.8])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_among_twenty_true_nulls_holm_finds_one_in_five_of_a_hundred_pages_at_most() -> None:
    pages = np.random.default_rng(4).uniform(size=(2000, 20))
    assert (pages.min(1) < 0.05).mean() > 0.5
    found = np.mean([min(holm(page)) < 0.05 for page in pages.tolist()])
    assert found <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 2000)


def test_other_images_are_not_compared() -> None:
    with pytest.raises(ValueError, match="not measured on the same images"):
        image_difference({"a": {0: True}}, {"a": {1: True}})


def test_mcnemar_by_hand() -> None:
    assert mcnemar(0, 5) == pytest.approx(2 / 32)
    assert mcnemar(3, 1) == pytest.approx(2 * (1 + 4) / 16)
    assert mcnemar(2, 2) == 1.0
    assert mcnemar(0, 0) == 1.0


@pytest.mark.parametrize(("gained", "lost"), [(60, 40), (3, 60), (1100, 900), (5_200, 4_900), (5_000, 5_000)])
def test_mcnemar_is_twice_the_binomial_tail_in_whole_numbers(gained: int, lost: int) -> None:
    n = gained + lost
    coefficient = tail = 1
    for k in range(1, min(gained, lost) + 1):
        coefficient = coefficient * (n - k + 1) // k
        tail += coefficient
    assert mcnemar(gained, lost) == pytest.approx(min(1.0, 2 * tail / 2**n), rel=1e-12)
    assert mcnemar(lost, gained) == mcnemar(gained, lost)


def test_mcnemar_of_a_hundred_thousand_images_is_a_number() -> None:
    assert mcnemar(54_000, 54_000) == 1.0
    assert 0 < mcnemar(55_000, 54_000) < 0.01


def test_a_table_of_images_says_who_is_right() -> None:
    text = "index,label,eps,clean_prediction,adversarial_prediction\n4,1,1/255,1,0\n7,2,1/255,2,2\n4,1,2/255,1,0\n"
    table = gzip.compress(text.encode())
    assert right_of_each(table, "1/255") == {4: False, 7: True}
    assert right_of_each(table, None) == {4: True, 7: True}
