"""Trials at the corners of a search space: every combination of choices, with all ranges at their low or high ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from optuna.distributions import CategoricalDistribution
from pydantic import BaseModel, ValidationError

from study.config import StudyConfig
from study.dimension import apply_params, combinations
from trainers.architectures import known_architectures, mismatches
from trainers.config import AttackConfig, ModelConfig, Steps, TrainConfig
from trainers.data import DATASETS
from trainers.objectives import METHODS

__all__ = ["Impossible", "impossible_trials"]

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
            yield Impossible(path, _at(values, path), rule)
        if "model.arch" in params and not model.names_a_place() and model.arch not in known_architectures():
            yield Impossible("model.arch", model.arch, "no such architecture")
        if too_long := _never_falls(study.data.train, train):
            yield Impossible("train.warmup", _at(values, "train.warmup"), too_long)


def _refused(
    name: str, error: ValidationError, values: Mapping[str, Any], params: Mapping[str, Any]
) -> Iterator[Impossible]:
    for detail in error.errors():
        where = ".".join([name, *(str(key) for key in detail["loc"])])
        path = where if where in params else next((path for path in params if path.startswith(f"{where}.")), where)
        yield Impossible(path, _at(values, path), detail["msg"].removeprefix("Value error, "))


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


def _at(values: Any, path: str) -> Any:
    for key in path.split("."):
        values = values.get(key) if isinstance(values, Mapping) else None
    return values
