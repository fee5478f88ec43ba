"""The text of a first study file: a preset's values spelled out, ready to be changed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from study.errors import UserError
from study.spec.config import StudyConfig
from study.spec.document import Loader
from trainers.objectives import METHODS
from trainers.objectives.presets import PRESETS
from trainers.schema.training import TrainConfig

NAME = next(rule.pattern for rule in StudyConfig.model_fields["name"].metadata if hasattr(rule, "pattern"))
DATA = """\
data:                                                   # names of `docs/guide.md`, or folder:DIRECTORY; no set twice
  train: tiny-wide
  dev: [heldout-shapes, heldout-counts]                 # the search looks here
  confirm: [heldout-colors, heldout-textures]           # promotion chooses among the top trials here
  final: [heldout-letters, heldout-digits, real-digits] # reported for the winner only
"""
STUDY = """\
evaluate:                                               # the same for every trial, whatever it trains with
  select: {protocol: strict, attack: {name: pgd, eps: [1/255], step_size: {of_eps: 0.25}, steps: 10}, samples: 1000}
  final: {protocol: strict, attack: {name: pgd, eps: [1/255], step_size: {of_eps: 0.25}, steps: 20}}
"""
GOAL = """\
goal: {metric: robust_accuracy, mode: max, subject_to: {clean_accuracy: ">= clip * 0.8"}}
scheduler: {name: asha, grace_fraction: 0.25, reduction_factor: 3}
resources: {workers: 1, gpus_per_worker: 0, cpus_per_worker: 1}       # gpus_per_worker: 1 for real CLIP weights
budget: {trials: 20}
seed: 0
"""


class Dumper(yaml.SafeDumper):
    """Quotes whatever a study file's `Loader` would read as something else than text."""

    yaml_implicit_resolvers = Loader.yaml_implicit_resolvers


def study_name(path: Path) -> str:
    """The name that a study gets from its file. `UserError` if there is a file already, or `path` makes no name."""
    if path.exists():
        raise UserError(f"{path}: exists; give the name of a new file")
    name = re.sub(r"[^a-z0-9._-]+", "-", path.stem.lower()).strip("-._")
    if not name:
        raise UserError(f"{path}: a study is named after its file; use letters and digits")
    if not re.fullmatch(NAME, name):
        rule = f"which must match {NAME} (at most 63 characters)"
        raise UserError(f"{path}: a study is named after its file, {rule}; got {name!r}, {len(name)} characters")
    return name


def study_text(name: str, *, preset: str, model: Mapping[str, str]) -> str:
    """A valid study file: a preset spelled out, on the drawn data."""
    recipe = PRESETS[preset]
    searched = METHODS[recipe["method"]["name"]].search_space
    rate = recipe["train"]["optimizer"]["lr"]
    learning_rate = {"train.optimizer.lr": {"low": rate / 10, "high": rate * 10, "log": True}}
    parts = [
        f"# A study of {recipe['method']['name']}, from the preset {preset}. Check it with `agft validate`.\n",
        _line("name", name),
        _block("model", model),
        _block("method", recipe["method"]),
        _block("attack", recipe["attack"]),
        DATA,
        _train(recipe["train"]),
        STUDY,
        "search:\n",
        *(f"  {_line(field, entry)}" for field, entry in {**searched, **learning_rate}.items()),
        GOAL,
    ]
    return "".join(parts)


def _block(name: str, values: Any) -> str:
    lines = "".join(f"  {_line(key, value)}" for key, value in values.items())
    return _line(name, dict(values)) if len(lines) < 100 else f"{name}:\n{lines}"


def _train(published: Mapping[str, Any]) -> str:
    """The recipe's training, its warm-up a fraction: the published number of updates is more than the tiny set has."""
    official = _line("official_schedule", published["official_schedule"])
    schedule = f"# published: {_flow(published['warmup'])}, {official}"
    values = {key: value for key, value in published.items() if key != "official_schedule"}
    values["warmup"] = TrainConfig.model_fields["warmup"].default
    lines = {key: _line(key, value) for key, value in values.items()}
    lines["warmup"] = f"{lines['warmup'].rstrip():<54}{schedule}"
    return "train:\n" + "".join(f"  {line}" for line in lines.values())


def _line(key: str, value: Any) -> str:
    """`key: value` on one line, as YAML's flow style writes it."""
    return _flow({key: value})[1:-1] + "\n"


def _flow(values: Mapping[str, Any]) -> str:
    return yaml.dump(values, Dumper=Dumper, default_flow_style=True, width=1000, sort_keys=False).rstrip("\n")
