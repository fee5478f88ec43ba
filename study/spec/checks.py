"""What is wrong with a study file's search: its methods, paths, conditions, given trials, and trials as a whole."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from optuna.distributions import CategoricalDistribution
from pydantic import BaseModel, ValidationError

from study.errors import Problem
from study.spec.config import StudyConfig
from study.spec.dimension import METHOD, Dimension, active, apply_params, combinations, grid_size
from study.spec.document import Keys
from study.spec.reader import problem_at
from study.spec.space import parse_space
from study.spec.starts import at_path, method_of_start
from trainers.data import DATASETS
from trainers.errors import nearest
from trainers.model.architectures import known_architectures
from trainers.objectives import METHODS
from trainers.objectives.presets import PRESETS
from trainers.schema.training import AttackConfig, ModelConfig, Steps, TrainConfig
from trainers.trial_config import mismatches

# Trials at the corners of a search space: every combination of choices, with all ranges at their low or high ends.

MOST = 2000  # combinations that are looked at; each takes a tenth of a millisecond


class Impossible(NamedTuple):
    """A value that cannot stand beside the others of its trial."""

    path: str
    value: Any
    rule: str


def corners(study: StudyConfig) -> Iterator[dict[str, Any]]:
    """Sampled values by path."""
    dimensions = study.dimensions()
    ends: dict[str, tuple[Any, ...]] = {}
    for dimension in dimensions:
        distribution = dimension.distribution
        if isinstance(distribution, CategoricalDistribution):
            ends[dimension.path] = tuple(dict.fromkeys(distribution.choices))
        else:
            ends[dimension.path] = (distribution.low, distribution.high)
    return itertools.islice(combinations(dimensions, ends), MOST)


def impossible_trials(study: StudyConfig) -> Iterator[Impossible]:
    """What is wrong at the corners; the same thing may come several times."""
    base, dimensions = study.base(), study.dimensions()
    records: dict[str, type[BaseModel]] = {
        "model": ModelConfig,
        "method": BaseModel,  # of the trial's own method, below
        "attack": AttackConfig,
        "train": TrainConfig,
    }
    for params in corners(study):
        values = apply_params(base, params, dimensions)
        parsed: dict[str, Any] = {}
        records["method"] = METHODS[values["method"]["name"]]
        for name, record in records.items():
            try:
                parsed[name] = record.model_validate(values[name])
            except ValidationError as error:
                yield from _refused(name, error, values, params)
        if len(parsed) < len(records):
            continue
        model, train = parsed["model"], parsed["train"]
        for path, rule in mismatches(model.arch, parsed["method"], train):
            yield Impossible(path, at_path(values, path), rule)
        if "model.arch" in params and not model.names_a_place() and model.arch not in known_architectures():
            yield Impossible("model.arch", model.arch, "no such architecture")
        if too_long := _never_falls(study.data.train, train):
            yield Impossible("train.warmup", at_path(values, "train.warmup"), too_long)


def _refused(
    name: str, error: ValidationError, values: Mapping[str, Any], params: Mapping[str, Any]
) -> Iterator[Impossible]:
    for detail in error.errors():
        where = ".".join([name, *(str(key) for key in detail["loc"])])
        path = where if where in params else next((path for path in params if path.startswith(f"{where}.")), where)
        yield Impossible(path, at_path(values, path), detail["msg"].removeprefix("Value error, "))


def _never_falls(train_set: str, train: TrainConfig) -> str | None:
    """A warm-up in updates that takes the whole training: the rate would only rise. Unknown sizes pass."""
    entry = DATASETS.get(train_set)
    if entry is None or not isinstance(train.warmup, Steps):
        return None
    samples = min(train.samples_per_epoch or entry.num_images, entry.num_images)
    updates = math.ceil(samples / train.batch_size) * train.epochs
    if train.warmup.steps < updates:
        return None
    return (
        f"the training has {updates} updates: the rate would never fall; write fewer steps, or a fraction such as 0.02"
    )


Lines = Mapping[Keys, int]
MOST_POINTS = 100_000  # of a grid with conditions, which has to be gone through


def alone_problems(raw: Mapping[str, Any], lines: Lines) -> list[Problem]:
    """Of `alternatives`, `search` and `warm_starts`, whatever the rest of the file is like."""
    blocks = _blocks(raw)
    if not blocks:
        return []  # the schema says so already
    return _alternatives(raw, lines) + _search(raw, blocks, lines) + _warm_starts(raw, blocks, lines)


def together_problems(study: StudyConfig, lines: Lines) -> list[Problem]:
    """Of a study whose every value is allowed on its own, and whose search can be read."""
    return _goal(study, lines) + _prior(study, lines) + _grid(study, lines) + _trials(study, lines)


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


def _alternatives(raw: Mapping[str, Any], lines: Lines) -> list[Problem]:
    """Every method once: its name is what the search chooses."""
    problems, seen = [], [raw["method"]["name"]]
    others = raw.get("alternatives")
    for index, block in enumerate(others if isinstance(others, list) else []):
        if block["name"] in seen:
            rule = "is there already; a study chooses among methods by name, so each can stand once"
            problems.append(problem_at(lines, ("alternatives", index, "name"), block["name"], rule))
        seen.append(block["name"])
    return problems


def _search(raw: Mapping[str, Any], blocks: Mapping[str, Any], lines: Lines) -> list[Problem]:
    search = raw.get("search")
    if not isinstance(search, Mapping):
        return []
    _, problems = parse_space(search, blocks)
    return [problem_at(lines, ("search", path), search[path], rule) for path, rule in problems]


def _warm_starts(raw: Mapping[str, Any], blocks: Mapping[str, Any], lines: Lines) -> list[Problem]:
    """A warm start names searched paths of one method, with values inside their ranges; or a preset of a method."""
    search, starts = raw.get("search", {}), raw.get("warm_starts")
    if not isinstance(search, Mapping) or not isinstance(starts, list):
        return []
    dimensions, wrong = parse_space(search, blocks)
    if wrong:
        return []
    problems = []
    for index, start in enumerate(starts):
        keys: Keys = ("warm_starts", index)
        if isinstance(start, str):
            if rule := _preset_rule(start, blocks):
                problems.append(problem_at(lines, keys, start, rule))
        elif isinstance(start, Mapping):
            found = [(path, _start_rule(path, start, search, dimensions, blocks)) for path in start]
            problems += [problem_at(lines, (*keys, path), start[path], rule) for path, rule in found if rule]
    return problems


def _preset_rule(name: str, blocks: Mapping[str, Any]) -> str:
    if name not in PRESETS:
        return ""  # the schema says so already
    method = PRESETS[name]["method"]["name"]
    return "" if method in blocks else f"is for the method {method!r}; the study has {', '.join(blocks)}"


def _start_rule(
    path: str, start: Mapping[str, Any], search: Mapping[str, Any], dimensions: list[Dimension],
    blocks: Mapping[str, Any],
) -> str:  # fmt: skip
    own = {dimension.path: dimension for dimension in dimensions}
    if path not in own:
        close = nearest(str(path), own)
        hint = f"did you mean {close[0]!r}? " if close else ""
        return f"is not searched; {hint}searched: {', '.join(own)}"
    if not own[path].holds(start[path]):
        return f"is outside its range {search.get(path, list(blocks))}"
    known = {p: own[p].inner(value) for p, value in start.items() if p in own and own[p].holds(value)}
    known[METHOD] = method_of_start(start, blocks)
    given = {other: known[other] for other, _ in own[path].when if other in known}
    if path in active(dimensions, known) or len(given) < len(own[path].when) or known[METHOD] not in blocks:
        return ""
    if METHOD in given and given[METHOD] not in dict(own[path].when)[METHOD]:
        return f"is not searched for {given[METHOD]}; name its method: {{{METHOD}: ..., {path}: ...}}"
    return f"is not searched where {', '.join(f'{other} is {value}' for other, value in given.items())}"


def _goal(study: StudyConfig, lines: Lines) -> list[Problem]:
    """What several metrics exclude."""
    if not study.goal.metrics:
        return []
    front = ", ".join(study.goal.metrics)
    problems = []
    if study.scheduler.row.stops:
        rule = f"a trial that is stopped early never enters the front of {front}; write none"
        problems.append(problem_at(lines, ("scheduler", "name"), study.scheduler.name, rule))
    if study.scheduler.patience is not None:
        rule = f"ends trials early, and the front of {front} is made of full-length ones; leave it out"
        problems.append(problem_at(lines, ("scheduler", "patience"), study.scheduler.patience, rule))
    if study.sampler.row.one_metric:
        rule = f"has one metric, and the goal has {front}; write nsga2, gp or tpe"
        problems.append(problem_at(lines, ("sampler", "name"), study.sampler.name, rule))
    return problems


def _prior(study: StudyConfig, lines: Lines) -> list[Problem]:
    names = study.prior.studies if study.prior else ()
    rule = "is this study's own name; a prior study is an earlier one"
    return [problem_at(lines, ("prior", "studies", index), name, rule)
            for index, name in enumerate(names) if name == study.name]  # fmt: skip


def _grid(study: StudyConfig, lines: Lines) -> list[Problem]:
    """A grid is made of choices, and every point of it is one trial of the budget."""
    if not study.sampler.row.exhaustive:
        return []
    dimensions = study.dimensions()
    ranges = [d.path for d in dimensions if not isinstance(d.distribution, CategoricalDistribution)]
    if ranges:
        return [problem_at(lines, ("search", path), None, "a grid needs {choices: [...]}") for path in ranges]
    points = grid_size(dimensions, most=MOST_POINTS)
    if points == study.budget.trials:
        return []
    rule = f"the grid has {points} points; every one is a trial, so write {points}"
    return [problem_at(lines, ("budget", "trials"), study.budget.trials, rule)]


def _trials(study: StudyConfig, lines: Lines) -> list[Problem]:
    """What is wrong with a trial that the search may propose, though every value is allowed on its own."""
    searched = [dimension.path for dimension in study.dimensions()]
    problems: dict[tuple[str, str], Problem] = {}
    for found in impossible_trials(study):
        keys: Keys = ("search", found.path) if found.path in searched else tuple(found.path.split("."))
        if found.path == METHOD and found.value in (names := [method.name for method in study.alternatives]):
            keys = ("alternatives", names.index(found.value), "name")
        problems.setdefault((found.path, found.rule), problem_at(lines, keys, found.value, found.rule))
    return list(problems.values())
