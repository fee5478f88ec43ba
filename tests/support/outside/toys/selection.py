"""A selection rule: the knee, the point of the front that is farthest from the line between its ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from study.spec.promotion import Given, Preference, SelectionRule
from trainers.schema.training import Metric


def read(given: Given) -> Preference:
    if given != "toy-knee":
        raise ValueError(f"{given!r}: the knee has no settings; write toy-knee")
    return Preference(weights={"robust_accuracy": 1.0, "clean_accuracy": 1.0})


def scores(points: Sequence[Mapping[Metric, float]]) -> list[float]:
    plane = [(point["robust_accuracy"], point["clean_accuracy"]) for point in points]
    (x0, y0), (x1, y1) = min(plane), max(plane)
    return [(x - x0) * (y0 - y1) + (y - y0) * (x1 - x0) for x, y in plane]


TOY_KNEE = SelectionRule("toy-knee", read, scores)
