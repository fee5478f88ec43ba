"""A user's YAML file as plain values and the lines they stand on: small, shallow, and never anything that runs.

A file is text from anywhere: whatever PyYAML stumbles over, and whatever would take minutes or gigabytes, is a
`Problem` with its line.
"""

from __future__ import annotations

import math
import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

from study.errors import Problem, StudyFileError, UserError

Keys = tuple[str | int, ...]

MOST_BYTES = 1_000_000
MOST_VALUES = 10_000  # an alias counts as often as it is used; the largest study file known has 300
MOST_DEPTH = 30
MOST_TEXT, MOST_KEY = 10_000, 200  # characters of a value and of a key
LARGEST = 2**63  # among whole numbers
PLAIN = "tag:yaml.org,2002:"
KINDS = ("null", "bool", "int", "float", "str", "seq", "map")  # what a value may be

NOT_AS_IN_1_1 = ("timestamp", "float", "int", "value")


class Loader(yaml.SafeLoader):
    """YAML 1.2's numbers (to YAML 1.1 4e-4 is text, 1:30 is 90 and 017 is 15) and no dates; stops at the limits."""

    values = depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One value; called for every value inside it."""
        self.values, self.depth = self.values + 1, self.depth + 1
        if self.values > MOST_VALUES or self.depth > MOST_DEPTH:
            what = f"nested more than {MOST_DEPTH} deep" if self.depth > MOST_DEPTH else _too_many()
            raise yaml.MarkedYAMLError(problem=what, problem_mark=self.get_mark())
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] not in NOT_AS_IN_1_1]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    f"{PLAIN}float",
    re.compile(r"^[-+]?(?:(?:\d[\d_]*\.[\d_]*|\.\d[\d_]*)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))$"
               r"|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)  # fmt: skip
Loader.add_implicit_resolver(
    f"{PLAIN}int", re.compile(r"^[-+]?(?:0|[1-9][\d_]*|0x[\da-fA-F_]+|0b[01_]+)$"), list("-+0123456789")
)


def read_text(path: Path) -> str:
    """A file's text; `UserError` when it cannot be read, is no regular file, or is larger than MOST_BYTES."""
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe that nobody writes to would be waited for
        with open(opened, "rb") as file:
            if not stat.S_ISREG(os.fstat(opened).st_mode):
                raise UserError(f"{path}: not a regular file; a pipe or a device is not read")
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(content) > MOST_BYTES:
        raise UserError(f"{path}: larger than {MOST_BYTES / 1e6:g} MB, which no file of settings is")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        hint = "; it looks like UTF-16: save it as UTF-8" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: cannot be read: line {line} is not UTF-8 text{hint}") from None


def dotted(path: Keys) -> str:
    """A path as messages show it."""
    return ".".join(str(key) or "''" for key in path) or "file"


def read_mapping(text: str, *, source: str, keys: str) -> tuple[dict[str, Any], dict[Keys, int], list[Problem]]:
    """A YAML mapping, the line of everything in it, and what is wrong with it as YAML; its keys are text as written.

    `keys`: what it may hold, for a message. `StudyFileError` where nothing of it can be read.
    """
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if not isinstance(node, yaml.MappingNode):
            raise StudyFileError(source, [Problem(1, "file", "", f"must be a mapping with {keys}, ...")])
        reading = _Reading(loader)
        raw = reading.value(node, ())
    except StudyFileError:
        raise
    except yaml.YAMLError as error:
        raise StudyFileError(source, [_not_yaml(error, text)]) from None
    except Exception as error:  # PyYAML raises whatever it stumbles over: ValueError, IndexError, OverflowError, ...
        raise StudyFileError(source, [Problem(1, "YAML", "", f"cannot be read ({error})")]) from None
    if reading.unreadable:
        raise StudyFileError(source, reading.unreadable + reading.twice)
    return raw, reading.lines, reading.twice


def _too_many() -> str:
    return f"holds more than {MOST_VALUES:,} values (an alias counts as often as it is used)"


def _not_yaml(error: yaml.YAMLError, text: str) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if isinstance(error, yaml.reader.ReaderError):
        line, what = text.count("\n", 0, error.position) + 1, f"{error.reason} (character {error.character!r})"
    else:
        line, what = mark.line + 1 if mark else 1, getattr(error, "problem", None) or str(error)
    return Problem(line, "YAML", "", what)


class _Reading:
    """Plain values of YAML's nodes: `lines` of every key and item, what is written `twice`, what is `unreadable`."""

    def __init__(self, loader: Loader) -> None:
        self.loader, self.values, self.depth = loader, 0, 0
        self.lines: dict[Keys, int] = {}
        self.twice: list[Problem] = []
        self.unreadable: list[Problem] = []

    def value(self, node: yaml.Node, path: Keys) -> Any:
        """What stands at `path`. Aliases are followed, each as often as it is used."""
        self.values, self.depth = self.values + 1, self.depth + 1
        if self.values > MOST_VALUES or self.depth > MOST_DEPTH:
            what = _too_many() if self.values > MOST_VALUES else "an alias stands inside what it names"
            raise yaml.MarkedYAMLError(problem=f"{dotted(path[:1])}: {what}", problem_mark=node.start_mark)
        found: Any
        kind = node.tag.removeprefix(PLAIN)
        if kind not in KINDS:
            found = None
            self._wrong(node, path, f"{_short(kind)!r} is no kind of value here; leave the tag out")
        elif isinstance(node, yaml.MappingNode):
            found = self._mapping(node, path)
        elif isinstance(node, yaml.SequenceNode):
            self.lines |= {(*path, index): item.start_mark.line + 1 for index, item in enumerate(node.value)}
            found = [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        else:
            found = self._scalar(node, path)
        self.depth -= 1
        return found

    def _mapping(self, node: yaml.MappingNode, path: Keys) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, item in node.value:
            line = key.start_mark.line + 1
            if key.tag == f"{PLAIN}merge":  # <<: *name
                for each in item.value if isinstance(item, yaml.SequenceNode) else [item]:
                    if isinstance(each, yaml.MappingNode):
                        merged = {**self.value(each, path), **merged}
                    else:
                        self._wrong(each, (*path, "<<"), "must name a mapping, whose keys are taken over")
            elif not isinstance(key, yaml.ScalarNode):
                self._wrong(key, path, "a key is text, not a list or a mapping")
            elif len(key.value) > MOST_KEY:
                self._wrong(key, path, f"the key {_short(key.value)} is longer than {MOST_KEY} characters")
            else:
                keys = (*path, key.value)
                if key.value in own:
                    rule = f"written twice; first on line {self.lines[keys]}"
                    self.twice.append(Problem(line, dotted(keys), "", rule))
                self.lines[keys] = line
                own[key.value] = self.value(item, keys)
        return {**merged, **own}

    def _scalar(self, node: yaml.Node, path: Keys) -> Any:
        if len(node.value) > MOST_TEXT:
            return self._wrong(node, path, f"{_short(node.value)} is longer than {MOST_TEXT:,} characters")
        try:
            value = self.loader.construct_object(node)
        except Exception:  # as above: an integer of more than 4,300 digits, `!!bool maybe`
            return self._wrong(node, path, f"{_short(node.value)} is no {node.tag[len(PLAIN) :]} that can be read")
        if (isinstance(value, float) and not math.isfinite(value)) or (
            isinstance(value, int) and abs(value) >= LARGEST
        ):
            return self._wrong(node, path, f"{_short(node.value)} is no finite number, or a whole one from 2^63 on")
        return value

    def _wrong(self, node: yaml.Node, path: Keys, rule: str) -> None:
        self.unreadable.append(Problem(node.start_mark.line + 1, dotted(path), "", rule))


def _short(text: str) -> str:
    return text if len(text) <= 30 else f"{text[:20]}... ({len(text):,} characters)"
