"""One searched field, when it is searched at all, and what its sampled value makes of a trial's configuration."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution

from trainers.errors import nearest
from trainers.schema.units import parse_fraction

METHOD = "method.name"  # searched where a study has alternatives
Condition = tuple[str, tuple[Any, ...]]  # a searched path, and the choices of it that let another one be searched


@dataclass(frozen=True)
class Dimension:
    """One searched field. `path` is dotted; `wrapper` is `of_model`, `of_eps`, `steps` or empty.

    It exists in a trial whose values meet every condition in `when`; conditions speak of dimensions that come before
    it. `blocks`, of the method's name only: the block that every name stands for.
    """

    path: str
    distribution: BaseDistribution
    wrapper: str = ""
    when: tuple[Condition, ...] = ()
    blocks: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)

    def value(self, sampled: Any) -> Any:
        """What the configuration gets for a sampled value."""
        return {self.wrapper: sampled} if self.wrapper else sampled

    def inner(self, value: Any) -> Any:
        """The sampled value behind what a study file or configuration says: unwrapped, fractions as numbers."""
        if self.wrapper and isinstance(value, Mapping):
            value = value.get(self.wrapper)
        if isinstance(value, str) and not (
            isinstance(self.distribution, CategoricalDistribution) and value in self.distribution.choices
        ):
            value = parse_fraction(value)
        return value

    def read(self, value: Any) -> Any:
        """As `inner`, of a configuration's value; `ValueError` where it is given in another way, such as absolutely."""
        if isinstance(value, Mapping) != bool(self.wrapper) or (self.wrapper and self.wrapper not in value):
            raise ValueError(f"{self.path}: {value!r} is given in another way than it is searched")
        try:
            return self.inner(value)
        except ValueError:
            return value  # a word, and none of the choices

    def holds(self, value: Any) -> bool:
        """Whether the distribution can give this value."""
        try:
            sampled = self.inner(value)
            return bool(self.distribution._contains(self.distribution.to_internal_repr(sampled)))
        except (ValueError, TypeError):
            return False

    def exists(self, values: Mapping[str, Any]) -> bool:
        """Whether it is searched in a trial with these sampled values of the dimensions before it."""
        return all(path in values and values[path] in allowed for path, allowed in self.when)


def active(dimensions: Sequence[Dimension], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values whose dimension exists in a trial that has them."""
    found: dict[str, Any] = {}
    for dimension in dimensions:
        if dimension.path in values and dimension.exists(found):
            found[dimension.path] = values[dimension.path]
    return found


def combinations(dimensions: Sequence[Dimension], values_of: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, Any]]:
    """Every different trial that the given values make, the last path varying fastest."""

    def further(found: dict[str, Any], rest: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
        if not rest:
            yield found
        elif not rest[0].exists(found):
            yield from further(found, rest[1:])
        else:
            for value in values_of[rest[0].path]:
                yield from further({**found, rest[0].path: value}, rest[1:])

    return further({}, dimensions)


def grid(dimensions: Sequence[Dimension]) -> Iterator[dict[str, Any]]:
    """Every combination of the choices."""
    return combinations(dimensions, {dimension.path: _choices(dimension) for dimension in dimensions})


def grid_size(dimensions: Sequence[Dimension], most: int) -> int:
    """How many combinations `grid` has; at least `most` where it has more and conditions must be gone through."""
    if any(dimension.when for dimension in dimensions):
        return sum(1 for _ in itertools.islice(grid(dimensions), most))
    return math.prod(len(_choices(dimension)) for dimension in dimensions)


def _choices(dimension: Dimension) -> tuple[Any, ...]:
    assert isinstance(dimension.distribution, CategoricalDistribution), "a grid is made of choices"
    return tuple(dict.fromkeys(dimension.distribution.choices))


def apply_params(base: Mapping[str, Any], params: Mapping[str, Any], dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """A trial's configuration: `base` with its method's block, and every sampled parameter at its dotted path."""
    config = _copy(base)
    values = active(dimensions, params)
    for dimension in dimensions:
        if dimension.path not in values:
            continue
        if dimension.blocks:
            config["method"] = _copy(dimension.blocks[values[dimension.path]])
            continue
        *parents, leaf = dimension.path.split(".")
        node = config
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = dimension.value(values[dimension.path])
    return config


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list | tuple) else value


def short(path: str) -> str:
    """A path in a table's heading: without where most lie; of what names something, what it names."""
    return path.removesuffix(".name").removeprefix("method.").removeprefix("train.optimizer.").removeprefix("train.")


def shown(path: str, value: Any) -> str:
    """A sampled value as a person writes it: radii as 4/255, other fractions with three digits."""
    if path.endswith(".eps") and isinstance(value, float):
        return f"{value * 255:.3g}/255"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


# `when:` of a search entry: the choices of other searched paths under which a path is searched.

Problems = list[tuple[str, str]]  # path, rule


def with_conditions(dimensions: Sequence[Dimension], whens: Mapping[str, Any]) -> tuple[list[Dimension], Problems]:
    """The dimensions with their `when` blocks worked in, each after those that it depends on; and what is wrong."""
    by_path = {dimension.path: dimension for dimension in dimensions}
    problems: Problems = []
    for path, when in whens.items():
        conditions, rules = _conditions(path, when, by_path)
        problems += [(path, rule) for rule in rules]
        by_path[path] = replace(by_path[path], when=(*by_path[path].when, *conditions))
    ordered, circle = _ordered(list(by_path.values()))
    if circle:
        problems.append((circle[0], f"when: depends on itself: {' -> '.join([*circle, circle[0]])}"))
        return list(by_path.values()), problems
    for dimension in ordered:
        if dimension.path in whens and not problems and not _possible(dimension, ordered):
            problems.append((dimension.path, "when: can never hold: no trial has these values together"))
    return ordered, problems


def _conditions(path: str, when: Any, by_path: Mapping[str, Dimension]) -> tuple[list[Condition], list[str]]:
    if not isinstance(when, Mapping) or not when:
        return [], ["when: must be {PATH: VALUE or [VALUES]}, naming searched paths that have choices"]
    choosing = [p for p, d in by_path.items() if isinstance(d.distribution, CategoricalDistribution) and p != path]
    found: list[Condition] = []
    rules: list[str] = []
    for other, wanted in when.items():
        if other == path:
            rules.append("when: a path cannot depend on itself")
        elif other not in by_path:
            close = nearest(str(other), choosing)
            hint = f"did you mean {close[0]!r}? " if close else ""
            rules.append(f"when: {other!r} is not searched; {hint}searched choices: {', '.join(choosing) or 'none'}")
        elif other not in choosing:
            rules.append(f"when: {other!r} has a range; only a path with choices can be asked for")
        else:
            condition, rule = _condition(by_path[other], wanted if isinstance(wanted, list) else [wanted])
            found += condition
            rules += rule
    return found, rules


def _condition(other: Dimension, wanted: list[Any]) -> tuple[list[Condition], list[str]]:
    choices = list(dict.fromkeys(other.distribution.choices))
    listing = ", ".join(map(str, choices))
    strange = [value for value in wanted if not other.holds(value)]
    if strange or not wanted:
        what = f"{strange[0]!r} is no choice" if strange else "an empty list never holds"
        return [], [f"when: {what} of {other.path}; choices: {listing}"]
    allowed = tuple(choice for choice in choices if choice in [other.inner(value) for value in wanted])
    if len(allowed) == len(choices):
        return [], [f"when: names every choice of {other.path}; leave it out"]
    return [(other.path, allowed)], []


def _ordered(dimensions: list[Dimension]) -> tuple[list[Dimension], list[str]]:
    """In the given order as far as possible; else the paths of a circle."""
    ordered: list[Dimension] = []
    rest = list(dimensions)
    while rest:
        done = {dimension.path for dimension in ordered}
        ready = next((d for d in rest if all(path in done for path, _ in d.when)), None)
        if ready is None:
            return ordered, _circle({d.path: [path for path, _ in d.when if path not in done] for d in rest})
        ordered.append(ready)
        rest.remove(ready)
    return ordered, []


def _circle(needs: Mapping[str, list[str]]) -> list[str]:
    path = next(iter(needs))
    way: list[str] = []
    while path not in way:
        way.append(path)
        path = needs[path][0]
    return way[way.index(path) :]


def _possible(dimension: Dimension, ordered: Sequence[Dimension]) -> bool:
    """Whether some combination of the choices that it depends on lets it exist."""
    needed = {dimension.path}
    for other in reversed(ordered):
        if other.path in needed:
            needed |= {path for path, _ in other.when}
    parents = [other for other in ordered if other.path in needed and other.path != dimension.path]
    choices = {other.path: other.distribution.choices for other in parents}
    return any(dimension.exists(values) for values in combinations(parents, choices))
