"""The `search:` block: dotted paths of typed fields -> Optuna distributions, each checked against the schema."""

from __future__ import annotations

import itertools
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union, get_args, get_origin

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from trainers.config import Steps, TrialConfig
from trainers.errors import nearest
from trainers.objectives import METHODS
from trainers.units import OfEps, OfModel, parse_fraction

__all__ = ["SEARCHABLE", "Dimension", "apply_params", "grid", "grid_size", "known_paths", "parse_space", "shown"]

SEARCHABLE = ("method", "attack", "train", "model", "seed")  # data, goal and evaluation are the same for every trial
RANGE_KEYS = {"low", "high", "log", "step"}
WRAPPERS: dict[str, type[BaseModel]] = {"of_model": OfModel, "of_eps": OfEps, "steps": Steps}


@dataclass(frozen=True)
class Dimension:
    """One searched field. `path` is dotted; `wrapper` is `of_model`, `of_eps`, `steps` or empty."""

    path: str
    distribution: BaseDistribution
    wrapper: str = ""

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

    def holds(self, value: Any) -> bool:
        """Whether the distribution can give this value."""
        try:
            sampled = self.inner(value)
            return bool(self.distribution._contains(self.distribution.to_internal_repr(sampled)))
        except (ValueError, TypeError):
            return False


def shown(path: str, value: Any) -> str:
    """A sampled value as a person writes it: radii as 4/255, other fractions with three digits."""
    if path.endswith(".eps") and isinstance(value, float):
        return f"{value * 255:.3g}/255"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The record types inside an annotation (unions and Annotated included)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, typing.Annotated):
        for part in get_args(annotation):
            yield from models_of(part)


def known_paths(
    method: str, model: type[BaseModel] = TrialConfig, prefix: str = ""
) -> dict[str, tuple[FieldInfo, type[BaseModel]]]:
    """Every dotted path that a study of `method` may search, with its field and the record that owns it."""
    found: dict[str, tuple[FieldInfo, type[BaseModel]]] = {}
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if path == "method.name" or (not prefix and name not in SEARCHABLE):
            continue
        inner = [record for record in models_of(field.annotation) if record not in WRAPPERS.values()]
        if path == "method":
            inner = [METHODS[method]]
        if inner:
            for record in inner:
                found.update(known_paths(method, record, f"{path}."))
        else:
            found[path] = (field, model)
    return found


def check_value(method: str, path: str, value: Any) -> str | None:
    """The rule that `value` breaks at `path`, or None."""
    field, _ = known_paths(method)[path]
    annotation: Any = field.annotation
    for constraint in field.metadata:
        annotation = typing.Annotated[annotation, constraint]
    try:
        TypeAdapter(annotation).validate_python(value)
    except ValidationError as error:
        return "; ".join(dict.fromkeys(detail["msg"] for detail in error.errors()))
    return None


def _is_integer(method: str, path: str, wrapper: str) -> bool:
    if wrapper:
        return WRAPPERS[wrapper].model_fields[wrapper].annotation is int
    annotation = known_paths(method)[path][0].annotation
    return annotation is int or int in get_args(annotation)


def _range(method: str, path: str, wrapper: str, entry: Mapping[str, Any]) -> tuple[BaseDistribution | None, list[str]]:
    try:
        low, high = (parse_fraction(entry[key]) for key in ("low", "high"))
        step = parse_fraction(entry["step"]) if entry.get("step") is not None else None
    except (KeyError, ValueError) as error:
        return None, [f"a range needs low and high as numbers or fractions ({error})"]
    log = entry.get("log", False)
    problems = [
        f"{key}: a number is needed, not {value!r}"
        for key, value in (("low", low), ("high", high))
        if isinstance(value, bool) or not isinstance(value, int | float)
    ]
    if not isinstance(log, bool):
        problems.append(f"log: must be true or false, not {log!r}")
    if problems:
        return None, problems
    if low >= high:
        return None, [f"low must be below high, got low {low:g} and high {high:g}"]
    if log and low <= 0:
        return None, [f"a log range needs low > 0, got {low:g}"]
    try:
        if _is_integer(method, path, wrapper):
            if int(low) != low or int(high) != high:
                return None, [f"the field is a whole number, got low {low:g} and high {high:g}"]
            return IntDistribution(int(low), int(high), log=log, step=int(step or 1)), []
        return FloatDistribution(float(low), float(high), log=log, step=step), []
    except ValueError as error:
        return None, [str(error)]


def _dimension(method: str, path: str, entry: Any) -> tuple[Dimension | None, list[str]]:
    """One entry of the block, or the rules that it breaks."""
    rule = "must be {low, high[, log, step]}, {choices: [...]} or {of_model: {...}} / {of_eps: {...}}"
    if not isinstance(entry, Mapping):
        return None, [rule]
    wrapper = next((key for key in WRAPPERS if set(entry) == {key}), "")
    inner = entry[wrapper] if wrapper else entry
    if not isinstance(inner, Mapping):
        return None, [rule]
    if wrapper and (error := check_value(method, path, {wrapper: 1})):
        return None, [f"cannot be given by {wrapper}: {error}"]
    unknown = set(inner) - RANGE_KEYS - {"choices"}
    if unknown:
        name = sorted(unknown)[0]
        close = nearest(name, RANGE_KEYS | {"choices"})
        return None, [f"unknown key {name!r}" + (f"; did you mean {close[0]!r}?" if close else f"; {rule}")]
    if "choices" in inner:
        if set(inner) != {"choices"} or not isinstance(inner["choices"], list) or not inner["choices"]:
            return None, ["choices must be a non-empty list, alone"]
        nested = next((v for v in inner["choices"] if isinstance(v, Mapping | list)), None)
        if nested is not None:
            return None, [f"{nested!r} is no choice; write {{of_model: {{choices: [...]}}}} for numbers of one kind"]
        words = known_paths(method)[path][0].annotation is str  # a place such as folder/file.pt is no fraction
        try:
            values = [v if words or not isinstance(v, str) or "/" not in v else parse_fraction(v)
                      for v in inner["choices"]]  # fmt: skip
            distribution: BaseDistribution | None = CategoricalDistribution(values)
        except ValueError as error:
            return None, [str(error)]
        problems: list[str] = []
        ends = values
    else:
        distribution, problems = _range(method, path, wrapper, inner)
        ends = [] if distribution is None else [distribution.low, distribution.high]
    for value in ends:
        if broken := check_value(method, path, {wrapper: value} if wrapper else value):
            problems.append(f"{value!r} is not allowed for this field: {broken}")
    return (None if problems or distribution is None else Dimension(path, distribution, wrapper)), problems


def parse_space(search: Mapping[str, Any], method: str) -> tuple[list[Dimension], list[tuple[str, str]]]:
    """Dimensions of a `search:` block of a study of `method`, and (path, rule) for every entry that is wrong."""
    known = known_paths(method)
    dimensions, problems = [], []
    for path, entry in search.items():
        if path not in known:
            problems.append((path, _no_such_field(path, known)))
            continue
        dimension, rules = _dimension(method, path, entry)
        problems += [(path, rule) for rule in rules]
        if dimension:
            dimensions.append(dimension)
    return dimensions, problems


def grid(dimensions: Sequence[Dimension]) -> list[dict[str, Any]]:
    """Every combination of the choices, the last path varying fastest."""
    choices = [_choices(dimension) for dimension in dimensions]
    return [dict(zip([d.path for d in dimensions], point, strict=True)) for point in itertools.product(*choices)]


def grid_size(dimensions: Sequence[Dimension]) -> int:
    """How many combinations `grid` has."""
    return math.prod(len(_choices(dimension)) for dimension in dimensions)


def _choices(dimension: Dimension) -> tuple[Any, ...]:
    assert isinstance(dimension.distribution, CategoricalDistribution), "a grid is made of choices"
    return tuple(dict.fromkeys(dimension.distribution.choices))


def _no_such_field(path: str, known: Mapping[str, Any]) -> str:
    head = str(path).split(".")[0]
    if head in TrialConfig.model_fields and head not in SEARCHABLE:
        return f"`{head}` is the same for every trial and cannot be searched; searchable: {', '.join(SEARCHABLE)}"
    close = nearest(str(path), known)
    owner = str(path).rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == owner]
    hint = f"did you mean {close[0]!r}? " if close else ""
    listing = f"{owner} has {', '.join(siblings)}" if siblings else f"known: {', '.join(known)}"
    return f"no such field; {hint}{listing}"


def apply_params(base: Mapping[str, Any], params: Mapping[str, Any], dimensions: list[Dimension]) -> dict[str, Any]:
    """A trial's configuration: `base` with every sampled parameter put at its dotted path."""
    config = _copy(base)
    for dimension in dimensions:
        if dimension.path not in params:
            continue
        *parents, leaf = dimension.path.split(".")
        node = config
        for name in parents:
            node = node.setdefault(name, {})
        node[leaf] = dimension.value(params[dimension.path])
    return config


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list | tuple) else value
