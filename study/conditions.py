"""`when:` of a search entry: the choices of other searched paths under which a path is searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.distributions import CategoricalDistribution

from study.dimension import Condition, Dimension, combinations
from trainers.errors import nearest

__all__ = ["with_conditions"]

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
