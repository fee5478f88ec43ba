"""How much worse one model may be than another, from both on the same images: a one-sided 95 % bound."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Paired", "Z", "paired"]

Z = 1.6448536269514722  # 95 % of a standard normal distribution lie below


@dataclass(frozen=True)
class Paired:
    """Mean of one less other over sets, points of 1; with probability 95 % the truth is below `upper`; above `lower`.

    `worse`, `better`: images on which one's score is below, above the other's.
    """

    mean: float
    lower: float
    upper: float
    images: int
    better: int
    worse: int


def paired(one: Mapping[str, NDArray[np.float64]], other: Mapping[str, NDArray[np.float64]]) -> Paired:
    """Of two models' scores, set -> [n] in [0, 1], image by image; sets weigh the same. `ValueError` if not alike.

    The adjusted Wald bound of Bonett and Price (J. Educ. Behav. Stat. 37, 2012), stratified: every set is given one
    image more that only the one, and one that only the other has right. So few images, or none on which the two
    differ, do not make a bound of no width, as resampling them would. With scores of 0 and 1 it is theirs exactly.
    """
    if one.keys() != other.keys() or not one or any(len(one[name]) != len(other[name]) for name in one):
        raise ValueError("the two were not measured on the same images")
    means, adjusted, variances = [], [], []
    images = better = worse = 0
    for name, scores in one.items():
        difference = np.asarray(scores, dtype=np.float64) - np.asarray(other[name], dtype=np.float64)
        n = len(difference)
        middle = float(difference.sum()) / (n + 2)
        means.append(float(difference.mean()))
        adjusted.append(middle)
        variances.append(((float((difference**2).sum()) + 2) / (n + 2) - middle**2) / (n + 2))
        images, better, worse = images + n, better + int((difference > 0).sum()), worse + int((difference < 0).sum())
    centre, width = float(np.mean(adjusted)), Z * math.sqrt(sum(variances)) / len(means)
    return Paired(float(np.mean(means)), centre - width, centre + width, images, better, worse)
