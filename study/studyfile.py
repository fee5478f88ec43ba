"""Read a study file: YAML with line numbers, all mistakes at once, nothing started."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from study.config import StudyConfig
from study.errors import Problem, StudyFileError, UserError
from study.evaluation_final import suite_problems
from study.lines import Keys, dotted, line_of, shown_value
from study.search_checks import alone_problems, together_problems
from study.space import models_of
from trainers import tiny
from trainers.architectures import known_architectures
from trainers.attack_parameters import EVAL_ATTACK_PARAMETERS
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
    searched = alone_problems(raw, lines)
    problems += unknown_preset + searched + _model(raw, lines) + _datasets(raw, lines)
    if study is not None and not searched:
        problems += together_problems(study, lines)
    if study is not None and study.evaluate.final.attacks:
        problems += _final_attacks(study, lines)
    return study, problems


def _final_attacks(study: StudyConfig, lines: Mapping[Keys, int]) -> list[Problem]:
    """Attacks that are not defined on a confirm or final set."""
    problems = []
    for text in suite_problems(study.evaluate.final, (*study.data.confirm, *study.data.final)):
        path, _, rule = text.partition(": ")
        keys: Keys = ("evaluate", "final", *(int(key) if key.isdigit() else key for key in path.split(".")))
        problems.append(Problem(line_of(lines, keys), dotted(keys), "", rule))
    return problems


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


def _record_at(raw: Mapping[str, Any], path: Keys) -> type[BaseModel] | None:
    """The record type that owns the last key of `path`."""
    owner: type[BaseModel] = StudyConfig
    for position, key in enumerate(path[:-1]):
        if isinstance(key, int):
            value, _ = _at(raw, path[: position + 1])
            owner = METHODS.get(str(value.get("name")), owner) if isinstance(value, Mapping) else owner
            continue
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
            kind, known = ("attack", EVAL_ATTACK_PARAMETERS) if path[0] == "evaluate" else ("method", METHODS)
            close = nearest(str(value), known)
            hint = f"did you mean {close[0]!r}? " if present and close else ""
            rule = f"{f'no such {kind}' if present else 'is required'}; {hint}known: {', '.join(known)}"
        problem = Problem(line_of(lines, path), dotted(path), shown_value(value) if present else "", rule)
        grouped.setdefault(path, []).append(problem)
    return None, [_joined(problems) for problems in grouped.values()]


def _joined(problems: list[Problem]) -> Problem:
    """One problem for a field whose every alternative failed."""
    rules = list(dict.fromkeys(problem.rule for problem in problems))
    first = problems[0]
    return Problem(first.line, first.path, first.value, " or ".join(rules))


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
