"""What a mapping of a user's file is as a typed record, and everything wrong with it in the same words."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import BaseModel, ValidationError

from study.errors import Problem
from study.spec.document import Keys, dotted
from trainers.errors import nearest_path, no_such
from trainers.schema.named import OneOf

Record = TypeVar("Record", bound=BaseModel)


def line_of(lines: Mapping[Keys, int], path: Keys) -> int:
    """The line of `path`, or of what encloses it."""
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 1)


def shown_value(value: Any) -> str:
    """A value as messages show it, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def problem_at(lines: Mapping[Keys, int], keys: Keys, value: Any, rule: str) -> Problem:
    """A mistake at a place of the file; `value` None: nothing stands there."""
    return Problem(line_of(lines, keys), dotted(keys), "" if value is None else shown_value(value), rule)


def problem_of(lines: Mapping[Keys, int], text: str, prefix: Keys = ()) -> Problem:
    """`path: rule` with its line, the path being one below `prefix`."""
    path, _, rule = text.partition(": ")
    keys: Keys = (*prefix, *(int(key) if key.isdigit() else key for key in path.split(".")))
    return Problem(line_of(lines, keys), dotted(keys), "", rule)


def read_record(
    model: type[Record], raw: Mapping[str, Any], lines: Mapping[Keys, int]
) -> tuple[Record | None, list[Problem]]:
    """The record that a mapping describes, if it is one, and everything wrong with it: one problem a place."""
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        details = error.errors()
    found: dict[Keys, list[Problem]] = {}
    for detail in details:
        if detail["type"] == "too_short" and any(_inside(other["loc"], detail["loc"]) for other in details):
            continue  # pydantic does not count the items that are wrong themselves
        path = _in_file(raw, detail["loc"])
        value, present = at(raw, path)
        rule = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            rule = _no_such_field(model, raw, path)
        elif detail["type"] == "missing":
            rule, present = "is required", False
        problem = Problem(line_of(lines, path), dotted(path), shown_value(value) if present else "", rule)
        found.setdefault(path, []).append(problem)
    return None, [
        replace(problems[0], rule=" or ".join(dict.fromkeys(problem.rule for problem in problems)))
        for problems in found.values()
    ]  # one problem for a field whose every alternative failed


def _inside(location: Keys, other: Keys) -> bool:
    return len(location) > len(other) and location[: len(other)] == other


def _no_such_field(model: type[BaseModel], raw: Mapping[str, Any], path: Keys) -> str:
    """The rule, with the field that was meant: one of this block that is all but the same, one of the same name in
    another block, or the nearest of this one."""
    own = _owner(model, raw, path).model_fields
    name, known = str(path[-1]), [each for each in field_paths(model, raw) if each.rpartition(".")[2] == path[-1]]
    if not known or difflib.get_close_matches(name, own, cutoff=0.85):
        return no_such("field", name, own)
    return f"no such field; did you mean {nearest_path(dotted(path), known)[0]!r}? known: {', '.join(own)}"


def field_paths(model: type[BaseModel], raw: Any, prefix: str = "") -> Iterator[str]:
    """Dotted paths of all fields of a record, and of the records in them that `raw` chooses."""
    for name, field in model.model_fields.items():
        yield f"{prefix}{name}"
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        inner = raw.get(name) if isinstance(raw, Mapping) else None
        for record in _records(annotation, inner):
            yield from field_paths(record, inner, f"{prefix}{name}.")


def _owner(model: type[BaseModel], raw: Mapping[str, Any], path: Keys) -> type[BaseModel]:
    """The record that the last key of `path` is not a field of."""
    owner, annotation = model, None
    for end in range(1, len(path)):
        if isinstance(key := path[end - 1], str):
            field = owner.model_fields[key]
            annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        owner = next(_records(annotation, at(raw, path[:end])[0]), owner)
    return owner


def _records(annotation: Any, value: Any) -> Iterator[type[BaseModel]]:
    """The record types that `value` may be meant for."""
    origin, parts = get_origin(annotation), get_args(annotation)
    tables = [part for part in parts[1:] if isinstance(part, OneOf)] if origin is Annotated else []
    meant = tables[0].meant(value.get("name")) if tables and isinstance(value, Mapping) else None
    if meant is not None:
        yield meant
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for part in parts[:1] if origin is Annotated else parts:
            yield from _records(part, value)


def at(raw: Any, path: Keys) -> tuple[Any, bool]:
    """What stands at `path`, and whether anything does."""
    for key in path:
        inside = key in raw if isinstance(raw, Mapping) else isinstance(raw, list) and key in range(len(raw))
        if not inside:
            return None, False
        raw = raw[key]
    return raw, True


def _in_file(raw: Any, location: Keys) -> Keys:
    """A pydantic location without the names of union members, which are not keys of the file."""
    path: Keys = ()
    for position, key in enumerate(location):
        last = position == len(location) - 1
        if at(raw, (*path, key))[1] or (last and key != "[key]" and isinstance(at(raw, path)[0], Mapping)):
            path = (*path, key)
    return path
