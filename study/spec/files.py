"""Read a study file: YAML with line numbers, all mistakes at once, nothing started."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from study.errors import Problem, StudyFileError
from study.spec.checks import alone_problems, together_problems
from study.spec.config import StudyConfig
from study.spec.document import Keys, dotted, read_mapping, read_text
from study.spec.evaluation import suite_problems
from study.spec.places import absolute
from study.spec.promotion import GatesConfig
from study.spec.reader import line_of, problem_at, problem_of, read_record, shown_value
from trainers.data import DATASETS, FOLDER_PREFIX, PREFIXES
from trainers.errors import nearest, no_such
from trainers.model import bundled as tiny
from trainers.model.architectures import known_architectures
from trainers.objectives.presets import PRESETS, with_preset
from trainers.schema.training import ModelConfig


def load_study(path: Path) -> StudyConfig:
    """The study in a file, or `StudyFileError` with every problem; `UserError` when it cannot be read."""
    return parse_study(read_text(path), source=str(path), base=path.parent)


def parse_study(text: str, *, source: str, base: Path = Path()) -> StudyConfig:
    """As `load_study`, from text; `source`: the name that messages carry; `base`: where relative paths are found."""
    raw, lines, problems = read_mapping(text, source=source, keys="name, data, method, budget")
    study, found = check_study(absolute(raw, base), lines)
    if problems or found or study is None:
        raise StudyFileError(source, problems + found)
    return study


def check_study(raw: dict[str, Any], lines: Mapping[Keys, int]) -> tuple[StudyConfig | None, list[Problem]]:
    """The study that a mapping describes, if it is one, and everything wrong with it."""
    raw, unknown_preset = _resolved(raw, lines)
    study, problems = read_record(StudyConfig, raw, lines)
    searched = alone_problems(raw, lines)
    problems += unknown_preset + searched + _model(raw, lines) + _datasets(raw, lines)
    if study is not None and not searched:
        problems += together_problems(study, lines)
    if study is not None and study.evaluate.final.attacks:
        sets = (*study.data.confirm, *study.data.final)
        problems += [
            problem_of(lines, text, ("evaluate", "final")) for text in suite_problems(study.evaluate.final, sets)
        ]
    return study, problems


def _resolved(raw: dict[str, Any], lines: Mapping[Keys, int]) -> tuple[dict[str, Any], list[Problem]]:
    """The mapping with its `preset` worked in: a preset is a way to write values, not a part of the study."""
    if "preset" not in raw:
        return raw, []
    name, given = raw["preset"], {key: value for key, value in raw.items() if key != "preset"}
    if not isinstance(name, str) or name not in PRESETS:
        rule = no_such("preset", name, PRESETS)
    else:
        try:
            return with_preset(name, given), []
        except ValueError as error:
            rule = str(error)
    return given, [Problem(line_of(lines, ("preset",)), "preset", shown_value(name), rule)]


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


def no_dataset(name: str) -> str:
    """The rule that a name breaks which is no dataset's; a path was meant for a folder of one's own."""
    if "/" in name or "\\" in name or name.startswith("~"):
        return f"no such dataset; a folder of your own is written {FOLDER_PREFIX}{name}"
    return no_such("dataset", name, DATASETS)


def _datasets(raw: Mapping[str, Any], lines: Mapping[Keys, int]) -> list[Problem]:
    """Every dataset is known, and none has two roles."""
    data = raw.get("data")
    if not isinstance(data, Mapping):
        return []
    problems: list[Problem] = []
    seen: dict[str, str] = {}
    for role in ("train", "dev", "confirm", "final"):
        names = data.get(role)
        listed = names if isinstance(names, list) and role != "train" else [names]
        for index, name in enumerate(listed):
            where: Keys = ("data", role, index) if listed is names else ("data", role)
            if not isinstance(name, str):
                continue  # the schema says so already
            if name not in DATASETS and not name.startswith(PREFIXES):
                problems.append(problem_at(lines, where, name, no_dataset(name)))
            elif name in seen:
                rule = f"already has the role {seen[name]!r}; roles must not share a dataset"
                problems.append(Problem(line_of(lines, where), dotted(where), repr(name), rule))
            seen.setdefault(name, role)
    return problems


# A policy file: the keys of `promote.gates`, kept apart from studies by whoever answers for what ships.


def load_policy(path: Path) -> GatesConfig:
    """The gates in a file; `StudyFileError` with every problem, `UserError` when it cannot be read."""
    raw, lines, problems = read_mapping(read_text(path), source=str(path), keys=", ".join(GatesConfig.model_fields))
    found, wrong = read_record(GatesConfig, raw, lines)
    problems += wrong
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
