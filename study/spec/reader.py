"""Users' YAML files: where things stand in them, and everything wrong with them in the same words."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from study.errors import Problem, StudyFileError, UserError
from trainers.errors import no_such
from trainers.schema.named import OneOf

Keys = tuple[str | int, ...]
Record = TypeVar("Record", bound=BaseModel)


def dotted(path: Keys) -> str:
    """A path as messages show it."""
    return ".".join(str(key) for key in path) or "file"


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


class Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 4e-4 is a float (YAML 1.1 reads it as text)."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def read_text(path: Path) -> str:
    """A file's text; `UserError` when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def problem_of(lines: Mapping[Keys, int], text: str, prefix: Keys = ()) -> Problem:
    """`path: rule` with its line, the path being one below `prefix`."""
    path, _, rule = text.partition(": ")
    keys: Keys = (*prefix, *(int(key) if key.isdigit() else key for key in path.split(".")))
    return Problem(line_of(lines, keys), dotted(keys), "", rule)


def read_mapping(text: str, *, source: str, keys: str) -> tuple[dict[str, Any], dict[Keys, int], list[Problem]]:
    """A YAML mapping, the line of everything in it, and its repeated keys. `keys`: what it may hold, for a message."""
    try:
        node = yaml.compose(text, Loader=Loader)
        raw = yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = getattr(error, "problem", None) or str(error)
        raise StudyFileError(source, [Problem((mark.line + 1) if mark else 1, "YAML", "", what)]) from None
    if not isinstance(raw, dict):
        raise StudyFileError(source, [Problem(1, "file", "", f"must be a mapping with {keys}, ...")])
    return (raw, *_lines(node))


def _lines(node: yaml.Node | None, prefix: Keys = ()) -> tuple[dict[Keys, int], list[Problem]]:
    """Line of every key and list item, and a problem for every key that is written twice."""
    lines: dict[Keys, int] = {}
    problems: list[Problem] = []
    children: Iterable[tuple[str | int, int, yaml.Node]] = ()
    if isinstance(node, yaml.MappingNode):
        children = [(key.value, key.start_mark.line + 1, value) for key, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        children = [(index, item.start_mark.line + 1, item) for index, item in enumerate(node.value)]
    for key, line, child in children:
        path = (*prefix, key)
        if path in lines:
            problems.append(Problem(line, dotted(path), "", f"written twice; first on line {lines[path]}"))
        lines[path] = line
        inner, inner_problems = _lines(child, path)
        lines.update(inner)
        problems += inner_problems
    return lines, problems


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
        path = _in_file(raw, detail["loc"])
        value, present = at(raw, path)
        rule = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            rule = no_such("field", path[-1], _owner(model, raw, path).model_fields)
        elif detail["type"] == "missing":
            rule, present = "is required", False
        problem = Problem(line_of(lines, path), dotted(path), shown_value(value) if present else "", rule)
        found.setdefault(path, []).append(problem)
    return None, [
        replace(problems[0], rule=" or ".join(dict.fromkeys(problem.rule for problem in problems)))
        for problems in found.values()
    ]  # one problem for a field whose every alternative failed


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
    tables = [part.table for part in parts[1:] if isinstance(part, OneOf)] if origin is Annotated else []
    name = value.get("name") if isinstance(value, Mapping) else None
    if tables and isinstance(name, str) and name in tables[0]:
        yield tables[0][name]
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
