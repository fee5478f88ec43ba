"""The grid of tiny-CLIP settings that `bench/measure_space.py` measured, as a function of sampled values. No torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from math import log
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["LOGARITHMIC", "SPACE", "Curve", "Point", "Table"]

# A sampled value counts as the nearest measured level: by the ratio for these, by the difference for the others.
LOGARITHMIC = ("train.optimizer.lr", "method.logit_scale")
# Every range reaches half a step beyond its outermost levels, so that no level has a smaller share than its neighbour.
SPACE: dict[str, Any] = {
    "train.optimizer.lr": {"low": 1.3e-4, "high": 1.07e-2, "log": True},
    "method.scale_ratio": {"low": 0.25, "high": 1.45},
    "method.logit_scale": {"of_model": {"low": 0.35, "high": 3.9, "log": True}},
    "attack.eps": {"low": 0.5 / 255, "high": 9.5 / 255},
}
Point = tuple[float, ...]
Curve = tuple[tuple[float, float, float], ...]


class Table:
    """`curves`: levels, in the order of `SPACE`, -> (clean, robust, seconds of this epoch) after every epoch.

    `levels`: measured values of every parameter.
    """

    def __init__(self, curves: Mapping[Point, Curve]) -> None:
        self.curves = curves
        self.levels = {path: sorted({point[place] for point in curves}) for place, path in enumerate(SPACE)}
        self._linear: tuple[list[list[float]], Any] | None = None

    def __repr__(self) -> str:
        return f"Table of {len(self.curves)} settings"

    @classmethod
    def read(cls, path: Path) -> Table:
        """The lines of `measure_space.py`; a setting whose loss went non-finite has fewer epochs."""
        curves = {}
        for line in path.read_text().splitlines():
            record = json.loads(line)
            before, epochs = 0.0, []
            for epoch in record["epochs"]:
                epochs.append((epoch["clean"], epoch["robust"], epoch["cpu_seconds"] - before))
                before = epoch["cpu_seconds"]
            curves[tuple(record["point"][path] for path in SPACE)] = tuple(epochs)
        return cls(curves)

    def snap(self, params: Mapping[str, float]) -> Point:
        """The measured setting nearest to sampled values; for one that is missing, the next nearest of all."""
        nearest = tuple(min(self.levels[path], key=lambda level: _far(path, level, params[path])) for path in SPACE)
        if nearest in self.curves:
            return nearest
        spans = {path: _far(path, levels[0], levels[-1]) for path, levels in self.levels.items()}
        return min(
            self.curves,
            key=lambda point: sum(
                (_far(path, level, params[path]) / spans[path]) ** 2 for path, level in zip(SPACE, point, strict=True)
            ),
        )

    def nearest(self, params: Mapping[str, float]) -> Curve:
        """The measured curve of the setting that sampled values snap to."""
        return self.curves[self.snap(params)]

    def between(self, params: Mapping[str, float]) -> Curve:
        """Linear between the measured settings around sampled values, constant beyond the outermost levels."""
        if self._linear is None:
            self._linear = self._interpolator()
        axes, interpolate = self._linear
        point = [_coordinate(path, params[path]) for path in SPACE]
        inside = [min(max(value, axis[0]), axis[-1]) for value, axis in zip(point, axes, strict=True)]
        return tuple(tuple(epoch) for epoch in interpolate(inside)[0].tolist())

    def _interpolator(self) -> tuple[list[list[float]], Any]:
        """Coordinates of the levels, and the multilinear function; a setting that is missing counts as its nearest."""
        from scipy.interpolate import RegularGridInterpolator

        axes = [[_coordinate(path, level) for level in levels] for path, levels in self.levels.items()]
        points = itertools.product(*self.levels.values())
        curves = [self.nearest(dict(zip(SPACE, point, strict=True))) for point in points]
        shape = [len(axis) for axis in axes] + [len(curves[0]), 3]
        return axes, RegularGridInterpolator(axes, np.array(curves).reshape(shape))

    def __call__(self, config: Mapping[str, Any]) -> list[tuple[float, float, float]]:
        """The curve of a trial's configuration, for `light.Plan`."""
        return list(self.nearest({path: _sampled(config, path) for path in SPACE}))


def _coordinate(path: str, value: float) -> float:
    return log(value) if path in LOGARITHMIC else value


def _far(path: str, one: float, other: float) -> float:
    return abs(_coordinate(path, one) - _coordinate(path, other))


def _sampled(config: Mapping[str, Any], path: str) -> float:
    node: Any = config
    for name in path.split("."):
        node = node[name]
    return float(node["of_model"] if isinstance(node, Mapping) else node)
