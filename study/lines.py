"""Where things stand in a YAML file, and how messages show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study.errors import Problem

__all__ = ["Keys", "dotted", "line_of", "problem_at", "shown_value"]

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
