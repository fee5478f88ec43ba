"""Trials that are given and not proposed: warm starts of the study file, and the points of a grid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from study.spec.config import StudyConfig
from study.spec.dimension import METHOD, Dimension, active, grid
from trainers.objectives.presets import PRESETS


class Start(NamedTuple):
    """A given trial: where it comes from, its sampled values, and what is sampled after all because it does not fit."""

    origin: str
    values: dict[str, Any]
    left_out: tuple[str, ...] = ()


class Observation(NamedTuple):
    """A trial of an earlier study whose result is known from the beginning: accuracies by name at its best epoch."""

    origin: str
    values: dict[str, Any]
    measured: dict[str, float]


def given_trials(spec: StudyConfig, dimensions: list[Dimension]) -> Iterator[Start]:
    """The first trials: a grid is nothing else, any other study begins with its warm starts."""
    if spec.sampler.row.exhaustive:
        yield from (Start("grid", point) for point in grid(dimensions))
    else:
        yield from warm_starts(spec, dimensions)


def warm_starts(spec: StudyConfig, dimensions: list[Dimension]) -> Iterator[Start]:
    """Of the study file: values by path over the file's own; a preset's values; an empty one once for every method."""
    blocks = spec.blocks()
    for entry in spec.warm_starts:
        if isinstance(entry, str):
            preset = PRESETS[entry]
            name = preset["method"]["name"]
            if name in blocks:
                yield _start(entry, spec, dimensions, name, preset)
        else:
            names = [method_of_start(entry, blocks)] if entry else list(blocks)
            for name in names:
                origin = "warm start" if entry else ("the file's values" if len(blocks) == 1 else f"the file's {name}")
                yield _start(origin, spec, dimensions, name, {}, entry)


def method_of_start(entry: Mapping[str, Any], blocks: Mapping[str, Any]) -> str:
    """The method that a warm start says or needs: the first one, unless it names another's."""
    return str(entry.get(METHOD, next(iter(blocks))))


def _start(
    origin: str, spec: StudyConfig, dimensions: Sequence[Dimension], method: str, over: Mapping[str, Any],
    values: Mapping[str, Any] | None = None,
) -> Start:  # fmt: skip
    """`over` is laid over the file's own values field by field, `values` by path."""
    base = {**spec.base(), "method": spec.blocks()[method]}
    found: dict[str, Any] = {METHOD: method}
    for dimension in dimensions:
        path = dimension.path
        if path == METHOD:
            continue
        given = at_path(over, path)
        found[path] = at_path(base, path) if given is None else given
        try:
            found[path] = values[path] if values and path in values else dimension.read(found[path])
        except ValueError:
            del found[path]
    kept = {d.path: d.inner(found[d.path]) for d in dimensions if d.path in found and d.holds(found[d.path])}
    # Where a choice is left to the sampler, what hangs on it stays: it is taken if the choice falls that way.
    shut: set[str] = set()
    for dimension in dimensions:
        if any(path in shut or (path in kept and kept[path] not in allowed) for path, allowed in dimension.when):
            shut.add(dimension.path)
    left = tuple(d.path for d in dimensions if d.path not in kept and d.exists(active(dimensions, kept)))
    return Start(origin, {path: value for path, value in kept.items() if path not in shut}, left)


def at_path(config: Any, path: str) -> Any:
    """What stands at a dotted path of nested mappings; None if nothing does."""
    for key in path.split("."):
        config = config.get(key) if isinstance(config, Mapping) else None
    return config
