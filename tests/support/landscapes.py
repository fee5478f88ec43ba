"""Grids of tiny-CLIP settings that `bench/measure_space.py` measured, as functions of sampled values. No torch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from trainers.schema.records import Measurement

__all__ = ["COLOR_SHAPES", "LANDSCAPES", "WIDE", "Curve", "Landscape", "Point", "Table"]

RESULTS = Path(__file__).parents[1] / "bench" / "results"
RADIUS = 6 / 255  # of the measuring attack, whatever a trial trains with
Point = tuple[float, ...]
Curve = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Landscape:
    """One study of AGFT on the bundled tiny CLIP: what it searches, at which levels it was measured, and the rest.

    `search`: every range reaches half a step beyond its outermost levels, so that no level has a smaller share than its
    neighbour. `file`: the measured settings; the unmodified CLIP's accuracies lie beside it.
    """

    name: str
    file: str
    levels: Mapping[str, list[float]]
    search: Mapping[str, Any]
    train_set: str
    dev: tuple[str, str]
    later: tuple[str, str]  # confirm, final
    epochs: int
    images: int  # of an epoch
    feature_weight: float

    @property
    def settings(self) -> Path:
        return RESULTS / self.file

    @property
    def unmodified(self) -> Path:
        return self.settings.with_name(f"{self.settings.stem}-unmodified.json")

    def logarithmic(self, path: str) -> bool:
        """Whether the nearest level is the nearest by ratio."""
        return bool(self.entry(path).get("log"))

    def entry(self, path: str) -> Mapping[str, Any]:
        """Its range, wherever it stands."""
        found = self.search[path]
        return dict(found.get("of_model", found))

    def training(self) -> dict[str, Any]:
        """What every trial trains with: blocks of a study file, or of a trial's configuration."""
        return {
            "model": {"arch": "tiny-clip", "pretrained": "bundled"},
            "method": {"name": "agft", "logit_scale": {"of_model": 1.0}, "feature_weight": self.feature_weight,
                       "attack_on": "total"},
            "attack": {"eps": 4 / 255, "step_size": {"of_eps": 0.75}, "steps": 2},
            "train": {"epochs": self.epochs, "batch_size": 64, "samples_per_epoch": self.images, "warmup": 0.05,
                      "optimizer": {"name": "adamw", "lr": 1e-3}},
        }  # fmt: skip

    def study(self) -> dict[str, Any]:
        """The study file, but for name, sampler, scheduler, budget and seed."""
        confirm, final = self.later
        return {
            **self.training(),
            "data": {"train": self.train_set, "dev": [*self.dev], "confirm": [confirm], "final": [final]},
            "evaluate": {"select": {"attack": {"eps": [RADIUS], "steps": 5}, "samples": 120}},
            "search": dict(self.search), "warm_starts": [],
            "goal": {"metric": "robust_accuracy", "subject_to": {"clean_accuracy": ">= clip * 0.8"}},
        }  # fmt: skip

    def trial(self, point: Mapping[str, float]) -> dict[str, Any]:
        """The configuration of the trial with these values."""
        found: dict[str, Any] = {
            **self.training(),
            "data": {"train": self.train_set},
            "evaluate": {"name": "dev", "datasets": [*self.dev], "attacks": [
                {"attack": {"name": "pgd", "steps": 5}, "eps": [RADIUS], "samples": 120}]},
        }  # fmt: skip
        for path, value in point.items():
            *blocks, name = path.split(".")
            node = found
            for block in blocks:
                node = node[block]
            node[name] = {"of_model": value} if "of_model" in self.search[path] else value
        return found

    def points(self) -> Iterator[dict[str, float]]:
        """Every combination of the levels."""
        for values in itertools.product(*self.levels.values()):
            yield dict(zip(self.levels, values, strict=True))

    def table(self) -> Table:
        """As measured. A setting whose loss went non-finite has fewer epochs."""
        curves = {}
        for line in self.settings.read_text().splitlines():
            record = json.loads(line)
            before, epochs = 0.0, []
            for epoch in record["epochs"]:
                epochs.append((epoch["clean"], epoch["robust"], epoch["cpu_seconds"] - before))
                before = epoch["cpu_seconds"]
            curves[tuple(record["point"][path] for path in self.search)] = tuple(epochs)
        return Table(self, curves)

    def clip(self) -> Measurement:
        """The CLIP that every trial starts from, measured as they were."""
        found = json.loads(self.unmodified.read_text())
        return Measurement(
            clean_accuracy=found["clean_accuracy"], robust_accuracy=found["robust_accuracy"], datasets={}
        )  # fmt: skip


COLOR_SHAPES = Landscape(
    name="tiny-color-shapes",
    file="search-space.jsonl",
    levels={
        "train.optimizer.lr": [2e-4, 5e-4, 1.2e-3, 3e-3, 7e-3],
        "method.scale_ratio": [0.4, 0.7, 1.0, 1.3],
        "method.logit_scale": [0.5, 1.0, 1.8, 3.0],
        "attack.eps": [2 / 255, 5 / 255, 8 / 255],
    },
    search={
        "train.optimizer.lr": {"low": 1.3e-4, "high": 1.07e-2, "log": True},
        "method.scale_ratio": {"low": 0.25, "high": 1.45},
        "method.logit_scale": {"of_model": {"low": 0.35, "high": 3.9, "log": True}},
        "attack.eps": {"low": 0.5 / 255, "high": 9.5 / 255},
    },
    train_set="tiny-color-shapes", dev=("tiny-shapes", "tiny-digits"), later=("tiny-colors", "tiny-letters"),
    epochs=6, images=512, feature_weight=20,
)  # fmt: skip

WIDE = Landscape(
    name="tiny-wide",
    file="search-space-wide.jsonl",
    levels={
        "train.optimizer.lr": [2e-4, 6e-4, 1.8e-3, 5.4e-3],
        "method.scale_ratio": [0.6, 0.9, 1.2],
        "method.logit_scale": [0.2, 0.4, 0.8],
        "method.feature_weight": [1.0, 5.0, 25.0],
        "attack.eps": [2 / 255, 5 / 255, 8 / 255],
    },
    search={
        "train.optimizer.lr": {"low": 1.15e-4, "high": 9.4e-3, "log": True},
        "method.scale_ratio": {"low": 0.45, "high": 1.35},
        "method.logit_scale": {"of_model": {"low": 0.141, "high": 1.131, "log": True}},
        "method.feature_weight": {"low": 0.447, "high": 55.9, "log": True},
        "attack.eps": {"low": 0.5 / 255, "high": 9.5 / 255},
    },
    train_set="tiny-wide", dev=("heldout-shapes", "heldout-counts"), later=("heldout-colors", "heldout-letters"),
    epochs=6, images=1024, feature_weight=5,
)  # fmt: skip

LANDSCAPES = {each.name: each for each in (COLOR_SHAPES, WIDE)}


class Table:
    """`curves`: levels, in the order of `search`, -> (clean, robust, seconds of this epoch) after every epoch.

    `levels`: measured values of every parameter.
    """

    def __init__(self, landscape: Landscape, curves: Mapping[Point, Curve]) -> None:
        self.landscape, self.curves = landscape, curves
        self.paths = tuple(landscape.search)
        self.levels = {path: sorted({point[place] for point in curves}) for place, path in enumerate(self.paths)}
        self._linear: tuple[list[list[float]], Any] | None = None

    def __repr__(self) -> str:
        return f"Table of {len(self.curves)} settings"

    def snap(self, params: Mapping[str, float]) -> Point:
        """The measured setting nearest to sampled values; for one that is missing, the next nearest of all."""
        nearest = tuple(
            min(self.levels[path], key=lambda level: self._far(path, level, params[path])) for path in self.paths
        )
        if nearest in self.curves:
            return nearest
        spans = {path: self._far(path, levels[0], levels[-1]) for path, levels in self.levels.items()}
        return min(
            self.curves,
            key=lambda point: sum(
                (self._far(path, level, params[path]) / spans[path]) ** 2
                for path, level in zip(self.paths, point, strict=True)
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
        point = [self._coordinate(path, params[path]) for path in self.paths]
        inside = [min(max(value, axis[0]), axis[-1]) for value, axis in zip(point, axes, strict=True)]
        return tuple(tuple(epoch) for epoch in interpolate(inside)[0].tolist())

    def _interpolator(self) -> tuple[list[list[float]], Any]:
        """Coordinates of the levels, and the multilinear function; a setting that is missing counts as its nearest."""
        from scipy.interpolate import RegularGridInterpolator

        axes = [[self._coordinate(path, level) for level in levels] for path, levels in self.levels.items()]
        points = itertools.product(*self.levels.values())
        curves = [self.nearest(dict(zip(self.paths, point, strict=True))) for point in points]
        shape = [len(axis) for axis in axes] + [len(curves[0]), 3]
        return axes, RegularGridInterpolator(axes, np.array(curves).reshape(shape))

    def __call__(self, config: Mapping[str, Any]) -> list[tuple[float, float, float]]:
        """The curve of a trial's configuration, for `light.Plan`."""
        return list(self.nearest({path: _sampled(config, path) for path in self.paths}))

    def _coordinate(self, path: str, value: float) -> float:
        return log(value) if self.landscape.logarithmic(path) else value

    def _far(self, path: str, one: float, other: float) -> float:
        return abs(self._coordinate(path, one) - self._coordinate(path, other))


def _sampled(config: Mapping[str, Any], path: str) -> float:
    node: Any = config
    for name in path.split("."):
        node = node[name]
    return float(node["of_model"] if isinstance(node, Mapping) else node)
