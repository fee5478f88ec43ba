"""How much better one model is than another, image by image: a one-sided bound that holds at every level and size.

Let x be an image's difference of scores, in [-1, 1], with mean mu over the images that might have been drawn. For any
0 <= rate < 1, E[1 + rate x] = 1 + rate mu <= exp(rate mu), so over the n images of a set the product of (1 + rate x) is
on average at most exp(rate n mu). With rates t / (sets n), every set gets the same weight: the product over all sets is
on average at most exp(t m), where m is the unweighted mean of the sets' mu. By Markov's inequality it exceeds
exp(t m) / level with a probability of at most `level`. Hence, with that probability of being wrong and no more,

    m >= (sum of log(1 + rate x) - log(1 / level)) / t.

The t that fits best depends on how many images the two models differ on, which nobody knows beforehand: products of a
few t are averaged, and an average of such products is one. That is a test by betting as in Waudby-Smith and Ramdas,
Estimating means of bounded random variables by betting (J. R. Stat. Soc. B 86, 2024), for one fixed sample: whoever
bets on the candidate with `rate` of his money has multiplied it by 1 / level only if the candidate is better, or by
luck of probability `level`. Nothing is approximated, so a level of 1e-5 is as honest as one of 0.05, with few images
that differ, or all of them in one direction, where a normal approximation errs 25 times as often as it says. The price:
of 1,000 images of which a tenth differ, the bound is 43 % wider than that approximation at a level of 0.0125, and 25 %
at 1e-4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Scores = Mapping[str, NDArray[np.float64]]
"""Set -> [n] in [0, 1]: every image's score."""
Pairs = Sequence[Sequence[float]]
Histogram = Mapping[str, Pairs]
"""Set -> [difference, images], by rising difference: all that a bound depends on, and as JSON values."""

BETS = ((0.02, 0.25), (0.1, 0.5), (0.5, 0.25))  # share of images on which two models differ, and weight of its product
LARGEST_RATE = 0.9  # of the money on one image: all of it would be lost with the first image that is worse
DIGITS = 12  # differences that agree to so many are the same
HALVINGS = 60


@dataclass(frozen=True)
class Bound:
    """Mean difference over sets, points of 1; with a probability of at most `level` each the truth is below `lower`,
    and above `upper`.
    """

    mean: float
    lower: float
    upper: float


def histogram(one: Scores, other: Scores, *, share: float = 1.0) -> dict[str, list[list[float]]]:
    """Of `one` - `share` * `other`, image by image. `ValueError` if they were not measured on the same images."""
    if one.keys() != other.keys() or not one or any(len(one[name]) != len(other[name]) for name in one):
        raise ValueError("the two were not measured on the same images")
    found = {}
    for name, scores in one.items():
        difference = np.round(np.asarray(scores) - share * np.asarray(other[name]), DIGITS)
        values, counts = np.unique(difference, return_counts=True)
        found[name] = [[float(value) + 0.0, int(count)] for value, count in zip(values, counts, strict=True)]
    return found


def bound(sets: Histogram, level: float) -> Bound:
    """Of the unweighted mean over sets, from their histograms; `level` in (0, 1), differences in [-1, 1]."""
    back = {name: [[-value, count] for value, count in pairs] for name, pairs in sets.items()}
    return Bound(mean_difference(sets), _lower(sets, level), -_lower(back, level))


def mean_difference(sets: Histogram) -> float:
    """Unweighted over the sets."""
    return math.fsum(math.fsum(v * c for v, c in pairs) / _images(pairs) for pairs in sets.values()) / len(sets)


def tally(sets: Histogram) -> dict[str, Any]:
    """For people: images in all, and those on which the one is better, worse."""
    every = [pair for pairs in sets.values() for pair in pairs]
    return {
        "images": _images(every),
        "better": _images([pair for pair in every if pair[0] > 0]),
        "worse": _images([pair for pair in every if pair[0] < 0]),
    }


def _images(pairs: Pairs) -> int:
    return sum(int(count) for _, count in pairs)


def _lower(sets: Histogram, level: float) -> float:
    """The largest m at which the averaged product is 1 / level; at least -1."""
    sizes = {name: _images(pairs) for name, pairs in sets.items()}
    needed = math.log(1 / level)
    products = []  # (log weight + sum of log(1 + rate x), t)
    for differing, weight in BETS:
        variance = sum(differing / size for size in sizes.values()) / len(sizes) ** 2
        t = min(math.sqrt(2 * needed / variance), LARGEST_RATE * len(sizes) * min(sizes.values()))
        grown = math.fsum(
            count * math.log1p(t / (len(sizes) * sizes[name]) * value)
            for name, pairs in sets.items()
            for value, count in pairs
        )
        products.append((math.log(weight) + grown, t))

    def enough(m: float) -> bool:
        """Has the averaged product at this m grown to 1 / level?"""
        logs = [grown - t * m for grown, t in products]
        top = max(logs)
        return top + math.log(sum(math.exp(each - top) for each in logs)) >= needed

    low, high = -1.0, 1.0
    if not enough(low):
        return low
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if enough(middle) else (low, middle)
    return low
