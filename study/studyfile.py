"""Read a study file: YAML with line numbers, all mistakes at once, nothing started."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from optuna.distributions import CategoricalDistribution
from pydantic import BaseModel, ValidationError

from study.config import StudyConfig
from study.corners import impossible_trials
from study.dimension import grid_size
from study.errors import Problem, StudyFileError, UserError
from study.space import models_of, parse_space
from trainers import tiny
from trainers.architectures import known_architectures
from trainers.config import ModelConfig
from trainers.data import DATASETS
from trainers.errors import nearest
from trainers.objectives import METHODS
from trainers.presets import PRESETS, with_preset

__all__ = [
    "Keys",
    "check_study",
    "dotted",
    "line_of",
    "load_study",
    "parse_study",
    "read_mapping",
    "read_text",
    "shown_value",
]

Keys = tuple[str | int, ...]


class Loader(yaml.SafeLoader):
    """YAML 1.2 numbers: 4e-4 is a float (YAML 1.1 reads it as text)."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def load_study(path: Path) -> StudyConfig:
    """The study in a file, or `StudyFileError` with every problem; `UserError` when it cannot be read."""
    return parse_study(read_text(path), source=str(path))


def read_text(path: Path) -> str:
    """A file's text; `UserError` when it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None


def parse_study(text: str, *, source: str) -> StudyConfig:
    """As `load_study`, from text; `source` is the name that messages carry."""
    raw, lines, problems = read_mapping(text, source=source, keys="name, data, method, budget")
    study, found = check_study(raw, lines)
    if problems or found or study is None:
        raise StudyFileError(source, problems + found)
    return study


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


def check_study(raw: dict[str, Any], lines: Mapping[Keys, int]) -> tuple[StudyConfig | None, list[Problem]]:
    """The study that a mapping describes, if it is one, and everything wrong with it."""
    raw, unknown_preset = _resolved(raw, lines)
    study, problems = _schema(raw, lines)
    problems += unknown_preset
    searched = _search(raw, lines)
    if study is not None:
        problems += _grid(study, lines) + ([] if searched else _trials(study, lines))
    return study, problems + searched + _model(raw, lines) + _datasets(raw, lines) + _warm_starts(raw, lines)


def _resolved(raw: dict[str, Any], lines: Mapping[Keys, int]) -> tuple[dict[str, Any], list[Problem]]:
    """The mapping with its `preset` worked in: a preset is a way to write values, not a part of the study."""
    if "preset" not in raw:
        return raw, []
    name, given = raw["preset"], {key: value for key, value in raw.items() if key != "preset"}
    if not isinstance(name, str) or name not in PRESETS:
        close = nearest(str(name), PRESETS)
        rule = f"no such preset; {f'did you mean {close[0]!r}? ' if close else ''}known: {', '.join(PRESETS)}"
    else:
        try:
            return with_preset(name, given), []
        except ValueError as error:
            rule = str(error)
    return given, [Problem(line_of(lines, ("preset",)), "preset", shown_value(name), rule)]


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


def dotted(path: Keys) -> str:
    """A path as messages show it."""
    return ".".join(str(key) for key in path) or "file"


def line_of(lines: Mapping[Keys, int], path: Keys) -> int:
    """The line of `path`, or of what encloses it."""
    return next((lines[path[:end]] for end in range(len(path), 0, -1) if path[:end] in lines), 1)


def _at(raw: Any, path: Keys) -> tuple[Any, bool]:
    """What stands at `path`, and whether anything does."""
    for key in path:
        inside = key in raw if isinstance(raw, Mapping) else isinstance(raw, list) and key in range(len(raw))
        if not inside:
            return None, False
        raw = raw[key]
    return raw, True


def shown_value(value: Any) -> str:
    """A value as messages show it, cut short."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _in_file(raw: Any, location: Keys) -> Keys:
    """A pydantic location without the union tags that are not keys of the file."""
    path: Keys = ()
    for position, key in enumerate(location):
        last = position == len(location) - 1
        if _at(raw, (*path, key))[1] or (last and isinstance(_at(raw, path)[0], Mapping)):
            path = (*path, key)
    return path


def _record_at(raw: Mapping[str, Any], path: Keys) -> type[BaseModel] | None:
    """The record type that owns the last key of `path`."""
    owner: type[BaseModel] = StudyConfig
    for position, key in enumerate(path[:-1]):
        field = owner.model_fields.get(str(key))
        records = list(models_of(field.annotation)) if field else []
        if not records:
            return None
        value, _ = _at(raw, path[: position + 1])
        owner = records[0]
        if owner in METHODS.values() and isinstance(value, Mapping):
            owner = METHODS.get(str(value.get("name")), owner)
    return owner


def _schema(raw: dict[str, Any], lines: Mapping[Keys, int]) -> tuple[StudyConfig | None, list[Problem]]:
    try:
        return StudyConfig.model_validate(raw), []
    except ValidationError as error:
        details = error.errors()
    grouped: dict[Keys, list[Problem]] = {}
    for detail in details:
        location = tuple(detail["loc"])
        path = _in_file(raw, location)
        value, present = _at(raw, path)
        rule = detail["msg"].removeprefix("Value error, ")
        if detail["type"] == "extra_forbidden":
            fields = list((_record_at(raw, path) or StudyConfig).model_fields)
            close = nearest(str(path[-1]), fields)
            rule = "no such field; " + (f"did you mean {close[0]!r}? " if close else "") + f"known: {', '.join(fields)}"
        elif detail["type"] == "missing":
            rule, present = "is required", False
        elif detail["type"].startswith("union_tag"):
            path, (value, present) = (*path, "name"), _at(raw, (*path, "name"))
            close = nearest(str(value), METHODS)
            hint = f"did you mean {close[0]!r}? " if present and close else ""
            rule = f"{'no such method' if present else 'is required'}; {hint}known: {', '.join(METHODS)}"
        problem = Problem(line_of(lines, path), dotted(path), shown_value(value) if present else "", rule)
        grouped.setdefault(path, []).append(problem)
    return None, [_joined(problems) for problems in grouped.values()]


def _joined(problems: list[Problem]) -> Problem:
    """One problem for a field whose every alternative failed."""
    rules = list(dict.fromkeys(problem.rule for problem in problems))
    first = problems[0]
    return Problem(first.line, first.path, first.value, " or ".join(rules))


def _blocks(raw: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The file's method blocks by name, if every one names a method that exists: what may be searched depends on it."""
    others = raw.get("alternatives", [])
    found: dict[str, dict[str, Any]] = {}
    for block in [raw.get("method"), *(others if isinstance(others, list | tuple) else [])]:
        name = block.get("name") if isinstance(block, Mapping) else None
        if not isinstance(name, str) or name not in METHODS or not isinstance(block, Mapping):
            return {}
        found.setdefault(name, dict(block))
    return found


def _trials(study: StudyConfig, lines: Mapping[Keys, int]) -> list[Problem]:
    """What is wrong with a trial that the search may propose, though every value is allowed on its own."""
    searched = [dimension.path for dimension in study.dimensions()]
    problems: dict[tuple[str, str], Problem] = {}
    for found in impossible_trials(study):
        keys: Keys = ("search", found.path) if found.path in searched else tuple(found.path.split("."))
        problem = Problem(line_of(lines, keys), dotted(keys), shown_value(found.value), found.rule)
        problems.setdefault((found.path, found.rule), problem)
    return list(problems.values())


def _grid(study: StudyConfig, lines: Mapping[Keys, int]) -> list[Problem]:
    """A grid is made of choices, and every point of it is one trial of the budget."""
    if study.sampler.name != "grid":
        return []
    dimensions, _ = parse_space(study.search, study.blocks())
    ranges = [d.path for d in dimensions if not isinstance(d.distribution, CategoricalDistribution)]
    if ranges:
        return [
            Problem(line_of(lines, ("search", path)), f"search.{path}", "", "a grid needs {choices: [...]}")
            for path in ranges
        ]
    points = grid_size(dimensions, most=100_000)
    if points == study.budget.trials:
        return []
    keys: Keys = ("budget", "trials")
    rule = f"the grid has {points} points; every one is a trial, so write {points}"
    return [Problem(line_of(lines, keys), dotted(keys), str(study.budget.trials), rule)]


def _search(raw: Mapping[str, Any], lines: Mapping[Keys, int]) -> list[Problem]:
    search, blocks = raw.get("search"), _blocks(raw)
    if not isinstance(search, Mapping) or not blocks:
        return []
    _, problems = parse_space(search, blocks)
    return [
        Problem(line_of(lines, ("search", path)), f"search.{path}", shown_value(search[path]), rule)
        for path, rule in problems
    ]


def _model(raw: Mapping[str, Any], lines: Mapping[Keys, int]) -> list[Problem]:
    """An architecture that open_clip does not know, or that the named weights were not trained in."""
    block = raw.get("model", {})
    try:
        model = ModelConfig.model_validate(block)
    except ValidationError:
        return []  # the schema says so already
    arch, known = model.arch, known_architectures()
    keys, wrong = ("model", "arch"), arch
    if model.names_a_place():
        return []
    if arch not in known:
        close = nearest(arch, known)
        hint = f"did you mean {' or '.join(map(repr, close))}? " if close else ""
        rule = f"no such architecture; {hint}open_clip has {len(known) - 1}, and {tiny.ARCH} is bundled"
    elif model.pretrained == "bundled" and arch != tiny.ARCH:
        keys, wrong, rule = ("model", "pretrained"), "bundled", f"exists for {tiny.ARCH} only"
    elif model.pretrained == "openai" and f"{arch}-quickgelu" in known:
        rule = f"OpenAI's weights need QuickGELU, which it is built without; write {arch}-quickgelu"
    else:
        return []
    return [Problem(line_of(lines, keys), dotted(keys), repr(wrong), rule)]


def _datasets(raw: Mapping[str, Any], lines: Mapping[Keys, int]) -> list[Problem]:
    """Every dataset is known, and none has two roles."""
    data = raw.get("data")
    if not isinstance(data, Mapping):
        return []
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for role in ("train", "dev", "confirm", "final"):
        names = data.get(role)
        listed: list[tuple[Keys, Any]] = [((role,), names)] if isinstance(names, str) else []
        if isinstance(names, list):
            listed = [((role, index), name) for index, name in enumerate(names)]
        for keys, name in listed:
            where: Keys = ("data", *keys)
            if not isinstance(name, str) or (isinstance(names, str) and role != "train"):
                continue  # the schema says so already
            if name not in DATASETS and not name.startswith("folder:"):
                close = nearest(name, DATASETS)
                hint = f"did you mean {close[0]!r}? " if close else ""
                rule = f"no such dataset; {hint}known: {', '.join(DATASETS)}"
                problems.append(Problem(line_of(lines, where), dotted(where), repr(name), rule))
            elif name in seen:
                rule = f"already has the role {seen[name]!r}; roles must not share a dataset"
                problems.append(Problem(line_of(lines, where), dotted(where), repr(name), rule))
            seen.setdefault(name, role)
    return problems


def _warm_starts(raw: Mapping[str, Any], lines: Mapping[Keys, int]) -> list[Problem]:
    """A warm start names searched paths only, with values inside their ranges."""
    search, starts = raw.get("search"), raw.get("warm_starts")
    blocks = _blocks(raw)
    if not isinstance(search, Mapping) or not isinstance(starts, list) or not blocks:
        return []
    dimensions = {dimension.path: dimension for dimension in parse_space(search, blocks)[0]}
    problems = []
    for index, start in enumerate(starts):
        for path, value in start.items() if isinstance(start, Mapping) else ():
            where: Keys = ("warm_starts", index, path)
            if path not in search:
                rule = f"is not searched; searched: {', '.join(map(str, search))}"
            elif path in dimensions and not dimensions[path].holds(value):
                rule = f"is outside its range {search[path]}"
            else:
                continue
            problems.append(Problem(line_of(lines, where), dotted(where), shown_value(value), rule))
    return problems
