"""Who proposes a trial's parameters: Optuna's samplers, reseeded before every proposal.

A sampler that is opened again with a fixed seed would propose the first trials again; here its seed is
hash(study seed, trial number), so that a restarted driver goes on as if it had never been away.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from optuna.trial import TrialState

from infra.failpoint import reach
from study.config import StudyConfig
from study.space import Dimension, grid

__all__ = ["directions", "draw", "enqueue_warm_starts", "proposals", "propose", "sampler_for", "values"]


def directions(spec: StudyConfig) -> list[str]:
    """Of the Optuna study: one a metric."""
    return ["maximize"] * len(spec.goal.at({}).names)


def values(spec: StudyConfig, record: Mapping[str, Any]) -> list[float]:
    """What Optuna is told about a full-length trial, given its last epoch record: one number a metric."""
    return [float(record[f"best_{name}"]) for name in spec.goal.at({}).names]


def proposals(study: optuna.Study, spec: StudyConfig, count: int) -> list[tuple[int, dict[str, Any]]]:
    """The first `count` trials of a study (an empty Optuna study of any storage), warm starts first."""
    dimensions = spec.dimensions()
    enqueue_warm_starts(study, spec, dimensions)
    return [propose(study, spec, dimensions) for _ in range(count)]


def enqueue_warm_starts(study: optuna.Study, spec: StudyConfig, dimensions: list[Dimension]) -> None:
    if study.user_attrs.get("agft.warm_starts"):
        return
    base = spec.base()
    # A grid is a queue of given trials: its sampler is never asked.
    for start in grid(dimensions) if spec.sampler.name == "grid" else spec.warm_starts:
        values = {d.path: d.inner(start.get(d.path, _at(base, d.path))) for d in dimensions}
        inside = {d.path: values[d.path] for d in dimensions if d.holds(values[d.path])}
        if inside:
            study.enqueue_trial(inside, user_attrs={"agft.warm_start": True}, skip_if_exists=True)
    reach("warm-starts.enqueued")
    study.set_user_attr("agft.warm_starts", True)


def propose(study: optuna.Study, spec: StudyConfig, dimensions: list[Dimension]) -> tuple[int, dict[str, Any]]:
    waiting = [trial.number for trial in study.get_trials(deepcopy=False, states=(TrialState.WAITING,))]
    number = min(waiting) if waiting else len(study.get_trials(deepcopy=False))
    study.sampler = sampler_for(spec, number)
    trial = study.ask()
    reach("trial.asked")
    assert trial.number == number, "one driver asks at a time: the lease sees to it"
    return number, draw(trial, dimensions)


def draw(trial: optuna.Trial, dimensions: list[Dimension]) -> dict[str, Any]:
    return {d.path: _suggest(trial, d) for d in dimensions}


def sampler_for(spec: StudyConfig, number: int) -> optuna.samplers.BaseSampler:
    """A sampler for one proposal: reopened with a fixed seed it would propose the first trials again."""
    digest = hashlib.sha256(f"{spec.seed}/{number}".encode()).digest()
    seed = int.from_bytes(digest[:4], "big") >> 1
    if spec.sampler.name == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=spec.sampler.startup_trials, constant_liar=True)


def _at(config: dict[str, Any], path: str) -> Any:
    node: Any = config
    for key in path.split("."):
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _suggest(trial: optuna.Trial, dimension: Dimension) -> Any:
    distribution = dimension.distribution
    if isinstance(distribution, optuna.distributions.CategoricalDistribution):
        return trial.suggest_categorical(dimension.path, distribution.choices)
    if isinstance(distribution, optuna.distributions.IntDistribution):
        return trial.suggest_int(
            dimension.path, distribution.low, distribution.high, step=distribution.step, log=distribution.log
        )
    assert isinstance(distribution, optuna.distributions.FloatDistribution), distribution
    return trial.suggest_float(
        dimension.path, distribution.low, distribution.high, step=distribution.step, log=distribution.log
    )
