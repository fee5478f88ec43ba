"""The `search:` block: dotted paths of typed fields -> Optuna distributions, each checked against the schema."""

from __future__ import annotations

import types
import typing
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from decimal import Decimal
from typing import Any, Union, get_args, get_origin

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from study.spec.dimension import METHOD, Dimension, with_conditions
from study.spec.reader import shown_value
from trainers.errors import nearest, nearest_path
from trainers.objectives import METHODS
from trainers.schema.training import Steps
from trainers.schema.units import OfEps, OfModel, parse_fraction
from trainers.trial_config import TrialConfig

SEARCHABLE = ("method", "attack", "train", "model", "seed")  # data, goal and evaluation are the same for every trial
RANGE_KEYS = {"low", "high", "log", "step"}
WRAPPERS: dict[str, type[BaseModel]] = {"of_model": OfModel, "of_eps": OfEps, "steps": Steps}


def models_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """The record types inside an annotation (unions and Annotated included)."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Union, types.UnionType, typing.Annotated, tuple):
        for part in get_args(annotation):
            yield from models_of(part)


def known_paths(
    method: str, model: type[BaseModel] = TrialConfig, prefix: str = ""
) -> dict[str, tuple[FieldInfo, type[BaseModel]]]:
    """Every dotted path that a study of `method` may search, with its field and the record that owns it."""
    found: dict[str, tuple[FieldInfo, type[BaseModel]]] = {}
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        if path == METHOD or (not prefix and name not in SEARCHABLE):
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
    given = {key: entry[key] for key in ("low", "high", "step") if entry.get(key) is not None}
    problems = [f"{key}: a range needs low and high" for key in ("low", "high") if key not in given]
    ends: dict[str, float] = {}
    for key, value in given.items():
        try:
            number = parse_fraction(value)
        except ValueError:
            number = None
        if isinstance(number, bool) or not isinstance(number, int | float):
            problems.append(f"{key}: a number or a fraction is needed, not {shown_value(value)}")
        else:
            ends[key] = number
    log = entry.get("log", False)
    if not isinstance(log, bool):
        problems.append(f"log: must be true or false, not {log!r}")
    if problems:
        return None, problems
    low, high, step = ends["low"], ends["high"], ends.get("step")
    integer = _is_integer(method, path, wrapper)
    if rule := _range_rule(low, high, step, log=log, integer=integer):
        return None, [rule]
    if step is not None:
        high = last_of(low, high, step)
    if integer:
        return IntDistribution(int(low), int(high), log=log, step=int(step or 1)), []
    return FloatDistribution(float(low), float(high), log=log, step=step), []


MOST_STEPS = 1_000_000


def _range_rule(low: float, high: float, step: float | None, *, log: bool, integer: bool) -> str:
    """What is wrong with a range of numbers, or ''."""
    if low >= high:
        return f"low must be below high, got low {low:g} and high {high:g}"
    if log and low <= 0:
        return f"a log range needs low > 0, got {low:g}"
    if integer and not (int(low) == low and int(high) == high):
        return f"the field is a whole number, got low {low:g} and high {high:g}"
    if step is None:
        return ""
    if log and step != 1:
        return "step: a log range has none; leave log or step out"
    if integer and int(step) != step:
        return f"step: the field is a whole number, and so is its step; got {step:g}"
    if not 0 < step <= high - low:
        return f"step: must be above 0 and at most high - low = {high - low:g}, got {step:g}"
    if (high - low) / step > MOST_STEPS:
        return f"step: {step:g} makes more than {MOST_STEPS:,} values between low and high; leave it out"
    return ""


def last_of(low: float, high: float, step: float) -> float:
    """The last value that is at most `high`, in steps from `low`."""
    first, width = Decimal(repr(low)), Decimal(repr(step))
    return float(first + (Decimal(repr(high)) - first) // width * width)


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


def parse_space(
    search: Mapping[str, Any], blocks: Mapping[str, Mapping[str, Any]]
) -> tuple[list[Dimension], list[tuple[str, str]]]:
    """Dimensions of a `search:` block, and (path, rule) for every entry that is wrong.

    `blocks`: the study's methods by name. Where there are several, the name is the first dimension, and a field of the
    method is searched in the trials of those that have it.
    """
    owners: dict[str, list[str]] = {}
    for method in blocks:
        for path in known_paths(method):
            owners.setdefault(path, []).append(method)
    dimensions, problems, whens = _choice_of_method(blocks), [], {}
    for path, given in search.items():
        if path not in owners:
            problems.append((path, _no_such_field(path, owners, blocks)))
            continue
        entry = {key: value for key, value in given.items() if key != "when"} if isinstance(given, Mapping) else given
        found = [_dimension(method, path, entry) for method in owners[path]]
        rules = list(dict.fromkeys(rule for _, broken in found for rule in broken))
        problems += [(path, rule) for rule in rules]
        dimension = found[0][0]
        if dimension is None or rules:
            continue
        if any(other is None or other.distribution != dimension.distribution for other, _ in found):
            problems.append((path, f"is of another kind in each of {', '.join(owners[path])}; search one of them"))
            continue
        some = len(owners[path]) < len(blocks)
        dimensions.append(replace(dimension, when=((METHOD, tuple(owners[path])),) if some else ()))
        if isinstance(given, Mapping) and "when" in given:
            whens[path] = given["when"]
    ordered, wrong = with_conditions(dimensions, whens)
    return ordered, problems + ([] if problems else wrong)


def _choice_of_method(blocks: Mapping[str, Mapping[str, Any]]) -> list[Dimension]:
    return [Dimension(METHOD, CategoricalDistribution(list(blocks)), blocks=blocks)] if len(blocks) > 1 else []


def _no_such_field(path: str, known: Mapping[str, Any], methods: Collection[str]) -> str:
    head = str(path).split(".")[0]
    if path == METHOD:
        return "is searched where the file has `alternatives`: further method blocks beside `method`; leave it out here"
    if head in TrialConfig.model_fields and head not in SEARCHABLE:
        return f"`{head}` is the same for every trial and cannot be searched; searchable: {', '.join(SEARCHABLE)}"
    close = nearest_path(str(path), known)
    owner = str(path).rpartition(".")[0]
    siblings = [name.rpartition(".")[2] for name in known if owner and name.rpartition(".")[0] == owner]
    hint = f"did you mean {close[0]!r}? " if close else ""
    of = " or ".join(methods) if owner == "method" else owner
    listing = f"{of} has {', '.join(siblings)}" if siblings else f"known: {', '.join(known)}"
    return f"no such field; {hint}{listing}"
