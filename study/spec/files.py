"""Read a study file: YAML with line numbers, all mistakes at once, nothing started."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from study.errors import Problem, StudyFileError
from study.spec.checks import alone_problems, together_problems
from study.spec.config import StudyConfig
from study.spec.evaluation import suite_problems
from study.spec.promotion import GatesConfig, ImprovementGate, SanityGate
from study.spec.reader import Keys, Loader, _at, _in_file, dotted, line_of, read_mapping, read_text, shown_value
from study.spec.space import models_of
from trainers.data import DATASETS
from trainers.errors import nearest
from trainers.model import bundled as tiny
from trainers.model.architectures import known_architectures
from trainers.objectives import METHODS
from trainers.objectives.presets import PRESETS, with_preset
from trainers.schema.attacks import EVAL_ATTACKS
from trainers.schema.training import ModelConfig

Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)$"),
    list("-+0123456789."),
)


def load_study(path: Path) -> StudyConfig:
    """The study in a file, or `StudyFileError` with every problem; `UserError` when it cannot be read."""
    return parse_study(read_text(path), source=str(path))


def parse_study(text: str, *, source: str) -> StudyConfig:
    """As `load_study`, from text; `source` is the name that messages carry."""
    raw, lines, problems = read_mapping(text, source=source, keys="name, data, method, budget")
    study, found = check_study(raw, lines)
    if problems or found or study is None:
        raise StudyFileError(source, problems + found)
    return study


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
            kind, known = ("attack", EVAL_ATTACKS) if path[0] == "evaluate" else ("method", METHODS)
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


# A policy file: the keys of `promote.gates`, kept apart from studies by whoever answers for what ships.

INNER: dict[str, type[BaseModel]] = {"improvement": ImprovementGate, "sanity": SanityGate}


def load_policy(path: Path) -> GatesConfig:
    """The gates in a file; `StudyFileError` with every problem, `UserError` when it cannot be read."""
    raw, lines, problems = read_mapping(read_text(path), source=str(path), keys=", ".join(GatesConfig.model_fields))
    try:
        found = GatesConfig.model_validate(raw)
    except ValidationError as error:
        found = None
        for detail in error.errors():
            keys: Keys = tuple(key for key in detail["loc"] if key != "[key]")
            rule, value = detail["msg"].removeprefix("Value error, "), shown_value(detail["input"])
            if detail["type"] == "extra_forbidden":
                owner = INNER.get(str(keys[0]), GatesConfig) if len(keys) > 1 else GatesConfig
                close = nearest(str(keys[-1]), owner.model_fields)
                hint = f"did you mean {close[0]!r}? " if close else ""
                rule = f"no such field; {hint}known: {', '.join(owner.model_fields)}"
            problems.append(Problem(line_of(lines, keys), dotted(keys), value, rule))
    if problems or found is None:
        raise StudyFileError(path, problems)
    return found


# What differs between two study files, in words.


def spec_difference(old: str, new: str) -> str:
    """What changed between two canonical specs, one `path: old -> new` a line."""

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, Mapping) and value:
            return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}{key}.").items()}
        return {prefix.rstrip("."): value}

    before, after = flat(json.loads(old)), flat(json.loads(new))
    return "\n".join(
        f"  {path}: {before.get(path, '(absent)')!r} -> {after.get(path, '(absent)')!r}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    )
