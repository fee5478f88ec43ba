"""Where things stand in a YAML file, and how messages show them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from study.errors import Problem, StudyFileError, UserError

Keys = tuple[str | int, ...]


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


def read_text(path: Path) -> str:
    """A file's text; `UserError` when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


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


def _at(raw: Any, path: Keys) -> tuple[Any, bool]:
    """What stands at `path`, and whether anything does."""
    for key in path:
        inside = key in raw if isinstance(raw, Mapping) else isinstance(raw, list) and key in range(len(raw))
        if not inside:
            return None, False
        raw = raw[key]
    return raw, True


def _in_file(raw: Any, location: Keys) -> Keys:
    """A pydantic location without the union tags that are not keys of the file."""
    path: Keys = ()
    for position, key in enumerate(location):
        last = position == len(location) - 1
        if _at(raw, (*path, key))[1] or (last and isinstance(_at(raw, path)[0], Mapping)):
            path = (*path, key)
    return path
