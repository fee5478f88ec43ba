"""A compare file: methods, each with its own search space, and everything else shared; it becomes one study a method.

    methods:
      agft:  {method: {name: agft}, search: {method.scale_ratio: {low: 0.3, high: 1.2}}}
      tecoa: {method: {name: tecoa}}
    search: {train.optimizer.lr: {low: 1e-4, high: 1e-3, log: true}}    # by every method
    seeds: [101, 102, 103]                                               # of the best trial's repetitions

The other keys are a study file's. Every method's study is checked as a study file is, at the lines of this file.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from study.errors import Problem, StudyFileError
from study.spec.config import StudyConfig
from study.spec.document import Keys, read_mapping, read_text
from study.spec.files import check_study
from study.spec.places import absolute
from study.spec.reader import line_of, problem_at
from trainers.errors import no_such

OWN = ("methods", "seeds", "reference")
PER_METHOD = ("method", "search", "attack", "warm_starts")
STUDY_KEYS = tuple(name for name in StudyConfig.model_fields if name != "method")
LABEL = re.compile(r"^[a-z0-9][a-z0-9_-]{0,19}$")
NAME = re.compile(r"^[a-z0-9][a-z0-9._-]{0,31}$")
SEEDS = "-seeds"  # ends the name of a method's second study, the repetitions
EQUAL = ("model", "train.epochs", "train.samples_per_epoch", "train.batch_size", "train.trainable")  # and all below


@dataclass(frozen=True)
class Comparison:
    """A checked compare file. `searches`: each method's search study, by label in the file's order."""

    name: str
    reference: str
    seeds: tuple[int, ...]
    searches: dict[str, StudyConfig]

    def shared(self) -> StudyConfig:
        """Any of the studies, for what they have in common: model, data, evaluation, resources."""
        return next(iter(self.searches.values()))

    def repetition(self, label: str, config: Mapping[str, Any]) -> StudyConfig:
        """The study that runs a trial's configuration again, once a seed, each selected by the same rule."""
        search = self.searches[label]
        return search.repeated(f"{search.name}{SEEDS}", config, self.seeds)


def load_comparison(path: Path) -> Comparison:
    """The comparison in a file, or `StudyFileError` with every problem; `UserError` when it cannot be read."""
    return parse_comparison(read_text(path), source=str(path), base=path.parent)


def parse_comparison(text: str, *, source: str, base: Path = Path()) -> Comparison:
    """As `load_comparison`, from text; `source`: what messages call it; `base`: where relative paths are found."""
    raw, lines, problems = read_mapping(text, source=source, keys="name, methods, seeds, data, budget")
    raw = absolute(raw, base)
    problems += _own_problems(raw, lines)
    searches: dict[str, StudyConfig] = {}
    methods = raw.get("methods")
    for label, entry in methods.items() if isinstance(methods, Mapping) else ():
        if not isinstance(label, str) or not isinstance(entry, Mapping):
            continue
        study, found = check_study(_study(raw, label, entry), _study_lines(lines, label, entry))
        problems += [_in_this_file(problem, label, entry) for problem in found if problem.path != "name"]
        if study is not None:
            searches[label] = study
    problems = list(dict.fromkeys(problems))  # what is shared was checked with every method
    if problems:
        raise StudyFileError(source, problems)
    return Comparison(raw["name"], raw.get("reference", next(iter(searches))), tuple(raw["seeds"]), searches)


def _study(raw: Mapping[str, Any], label: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The study file of one method: what all share, with the method's own entries put over it."""
    study = {key: value for key, value in raw.items() if key in STUDY_KEYS}
    study.setdefault("scheduler", {"name": "none"})
    study["name"] = f"{raw.get('name')}-{label}"
    for key in ("method", "warm_starts"):
        if key in entry:
            study[key] = entry[key]
    for key in ("search", "attack"):
        if key in entry:
            own, shared = entry[key], raw.get(key, {})
            both = isinstance(own, Mapping) and isinstance(shared, Mapping)
            study[key] = {**shared, **own} if both else own
    return study


def _study_lines(lines: Mapping[Keys, int], label: str, entry: Mapping[str, Any]) -> dict[Keys, int]:
    """Where the keys of `_study` stand in this file."""
    here: Keys = ("methods", label)
    shared = {path: line for path, line in lines.items() if path[0] in STUDY_KEYS}
    own = {path[2:]: line for path, line in lines.items() if path[:2] == here and path[2:3] and path[2] in PER_METHOD}
    return {("method",): line_of(lines, here), **shared, **own}


def _in_this_file(problem: Problem, label: str, entry: Mapping[str, Any]) -> Problem:
    """A study's problem with the path that it has in the compare file."""
    block, _, rest = problem.path.partition(".")
    own = entry.get(block)
    inside = isinstance(own, Mapping) and any(rest == key or rest.startswith(f"{key}.") for key in map(str, own))
    if block == "method" or (block == "warm_starts" and own is not None) or inside or (own is not None and not rest):
        return Problem(problem.line, f"methods.{label}.{problem.path}", problem.value, problem.rule)
    return problem


def _own_problems(raw: Mapping[str, Any], lines: Mapping[Keys, int]) -> list[Problem]:
    """What is wrong with the keys that a study file does not have, and with how they fit together."""
    problems: list[Problem] = []

    def wrong(path: Keys, rule: str, value: Any = None) -> None:
        problems.append(problem_at(lines, path, value, rule))

    known = [*OWN, *STUDY_KEYS]
    for key in raw:
        if key not in known:
            wrong((key,), no_such("field", key, known), raw[key])
    name = raw.get("name")
    if not isinstance(name, str) or not NAME.match(name):
        wrong(("name",), "must be 1 to 32 of: lower case letters, digits, . _ -", name)
    for label, entry in _methods(raw, wrong).items():
        here: Keys = ("methods", label)
        if not isinstance(label, str) or not LABEL.match(label):
            wrong(here, "a method's label is 1 to 20 of: lower case letters, digits, _ -", label)
        elif label.endswith(SEEDS):
            wrong(here, f"may not end in {SEEDS}: the studies of the repetitions are named so", label)
        if not isinstance(entry, Mapping):
            wrong(here, f"must be a mapping with {', '.join(PER_METHOD)}", entry)
            continue
        for key in entry:
            if key not in PER_METHOD:
                rule = f"no such field; a method has {', '.join(PER_METHOD)}; everything else is shared by all methods"
                wrong((*here, key), rule, entry[key])
        _check_search(entry.get("search"), (*here, "search"), wrong)
    methods = raw.get("methods")
    if "reference" in raw and isinstance(methods, Mapping) and raw["reference"] not in methods:
        wrong(("reference",), f"no such method here; known: {', '.join(map(str, methods))}", raw["reference"])
    _check_search(raw.get("search"), ("search",), wrong)
    budget = raw.get("budget")
    for key in ("hours", "gpu_hours"):
        if isinstance(budget, Mapping) and budget.get(key) is not None:
            wrong(("budget", key), "would give the methods different numbers of trials; use trials alone", budget[key])
    _check_seeds(raw, wrong)
    return problems


def _methods(raw: Mapping[str, Any], wrong: Any) -> Mapping[Any, Any]:
    methods = raw.get("methods")
    if isinstance(methods, Mapping) and len(methods) >= 2:
        return methods
    wrong(("methods",), "must name two or more methods, each as LABEL: {method: {name: ...}, search: {...}}")
    return methods if isinstance(methods, Mapping) else {}


def _check_search(search: Any, here: Keys, wrong: Any) -> None:
    """What every run must have in common is not searched, by one method or by all."""
    for key, entry in search.items() if isinstance(search, Mapping) else ():
        path = str(key)
        if path == "seed":
            wrong((*here, key), "the seed is not searched; `seeds` repeats the best trial", entry)
        elif any(path == equal or path.startswith(f"{equal}.") for equal in EQUAL):
            rule = "is not searched: the chosen runs would differ in it, and not in their methods alone; set it for all"
            wrong((*here, key), rule, entry)


def _check_seeds(raw: Mapping[str, Any], wrong: Any) -> None:
    seeds = raw.get("seeds")
    if not isinstance(seeds, list) or len(seeds) < 2:
        wrong(("seeds",), "must be a list of two or more whole numbers: with one there is no spread to report", seeds)
        return
    for index, seed in enumerate(seeds):
        where: Keys = ("seeds", index)
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**31:
            wrong(where, "must be a whole number from 0 to 2147483647", seed)
        elif seed == raw.get("seed", StudyConfig.model_fields["seed"].default):
            wrong(where, "is the seed of the search; the repetitions need fresh ones", seed)
        elif seed in seeds[:index]:
            wrong(where, "is there twice", seed)
