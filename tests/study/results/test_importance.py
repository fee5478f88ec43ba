"""Importances find what moved the result, and say when nothing can be said."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution

from study.results.facts import Trial
from study.results.importance import MIN_TRIALS, Importances, importances
from study.spec.dimension import Dimension

LR = Dimension("train.optimizer.lr", FloatDistribution(1e-5, 1e-1, log=True))
RATIO = Dimension("method.scale_ratio", FloatDistribution(0.2, 1.2))
NAME = Dimension("train.optimizer.name", CategoricalDistribution(["sgd", "adamw"]))
MOMENTUM = Dimension("train.optimizer.momentum", FloatDistribution(0.0, 0.9))
SPACE = [LR, RATIO, NAME, MOMENTUM]


def trial(number: int, params: dict[str, Any], robust: float, clean: float = 0.5, state: str = "complete") -> Trial:
    return Trial(
        number=number, state=state, params=params, epochs=4, planned_epochs=4, best_epoch=4, clean_accuracy=clean,  # type: ignore[arg-type]
        robust_accuracy=robust, clean_error=0.0, robust_error=0.0, feasible=True, started_ms=0, ended_ms=1,
        device_seconds=1.0, stop_reason=None, failure_kind=None, reference="", rerun_of=None, checkpoint=None,
        checkpoint_sha256=None, curve=(), attempts=(), config={},
    )  # fmt: skip


def sampled(count: int, seed: int = 0) -> list[dict[str, Any]]:
    """Points of a space in which only SGD has a momentum."""
    random = np.random.default_rng(seed)
    points = []
    for _ in range(count):
        point: dict[str, Any] = {
            LR.path: 10 ** random.uniform(-5, -1), RATIO.path: random.uniform(0.2, 1.2),
            NAME.path: str(random.choice(["sgd", "adamw"])),
        }  # fmt: skip
        if point[NAME.path] == "sgd":
            point[MOMENTUM.path] = random.uniform(0, 0.9)
        points.append(point)
    return points


def of(trials: list[Trial], metric: str = "robust_accuracy") -> Importances:
    return next(each for each in importances(trials, SPACE) if each.metric == metric)


def test_the_parameter_that_alone_decides_is_found_above_the_noise_and_the_others_are_not():
    trials = [trial(n, p, 0.5 - 0.05 * (np.log10(p[LR.path]) + 3) ** 2) for n, p in enumerate(sampled(30))]
    found = of(trials)
    shares = {entry.path: entry for entry in found.entries}
    assert found.entries[0].path == LR.path
    assert shares[LR.path].share > 0.8
    assert shares[LR.path].above_noise
    assert not any(entry.above_noise and entry.share > 0.1 for entry in found.entries[1:])
    assert [entry.above_noise for entry in found.entries] == [entry.share > found.noise for entry in found.entries]
    assert not found.entries[-1].above_noise
    assert found.r2 is not None
    assert found.r2 > 0.5
    assert found.note == ""


def test_a_choice_is_found_and_a_conditional_parameter_is_not_mistaken_for_it():
    trials = [trial(n, p, 0.5 if p[NAME.path] == "sgd" else 0.3) for n, p in enumerate(sampled(30, seed=3))]
    shares = {entry.path: entry.share for entry in of(trials).entries}
    assert shares[NAME.path] == max(shares.values())
    assert shares[NAME.path] > shares[MOMENTUM.path]


def test_pure_noise_predicts_nothing_and_the_note_says_so():
    random = np.random.default_rng(5)
    found = of([trial(n, p, random.uniform(0.3, 0.4)) for n, p in enumerate(sampled(30, seed=5))])
    assert found.r2 is not None
    assert found.r2 <= 0
    assert "nothing can be read off" in found.note


def test_more_trials_narrow_the_interval():
    widths = {}
    for count in (12, 60):
        trials = [
            trial(n, p, 0.4 - 0.04 * abs(np.log10(p[LR.path]) + 3) + 0.05 * p[RATIO.path])
            for n, p in enumerate(sampled(count, seed=1))
        ]
        entry = next(entry for entry in of(trials).entries if entry.path == LR.path)
        assert 0 <= entry.low <= entry.share <= entry.high <= 1
        widths[count] = entry.high - entry.low
    assert widths[60] < widths[12]


def test_only_full_length_trials_count_and_too_few_of_them_are_said_to_be_too_few():
    points = sampled(MIN_TRIALS + 5)
    trials = [trial(n, p, 0.3 + p[RATIO.path] / 10) for n, p in enumerate(points)]
    few = [replace(t, state="pruned") if t.number >= MIN_TRIALS - 1 else t for t in trials]
    found = of(few)  # type: ignore[arg-type]
    assert found.entries == ()
    assert found.note == f"too few trials: {MIN_TRIALS - 1} of at least {MIN_TRIALS} at full length"
    enough = [*few[:-1], trial(99, points[-1], 0.4)]
    assert of(enough).trials == MIN_TRIALS  # type: ignore[arg-type]
    wild = [*enough, trial(100, points[0], 0.9, state="pruned"), trial(101, points[1], 0.0, state="failed")]
    assert of(wild) == of(enough)  # type: ignore[arg-type]


def test_trials_below_a_floor_count():
    trials = [replace(trial(n, p, 0.3 + p[RATIO.path] / 10), feasible=n % 2 == 0) for n, p in enumerate(sampled(14))]
    assert of(trials).trials == 14


def test_equal_accuracies_and_an_empty_search_have_no_importances():
    trials = [trial(n, p, 0.4) for n, p in enumerate(sampled(12))]
    assert of(trials).note == "every trial has the same accuracy"
    assert [each.note for each in importances(trials, [])] == ["nothing is searched"] * 2


def test_the_same_trials_give_the_same_numbers():
    trials = [trial(n, p, 0.3 + p[RATIO.path] / 10, clean=0.7 - p[RATIO.path] / 9) for n, p in enumerate(sampled(15))]
    assert importances(trials, SPACE) == importances(trials, SPACE)


@pytest.mark.parametrize(("dimension", "values"), [(LR, [1e-5, 1e-4, 1e-3, 1e-2]), (NAME, ["sgd", "adamw"])])
def test_one_searched_parameter_takes_everything(dimension, values):
    trials = [trial(n, {dimension.path: values[n % len(values)]}, 0.2 + 0.1 * (n % len(values))) for n in range(12)]
    (entry,) = importances(trials, [dimension])[1].entries
    assert entry.share > 0.8
    assert entry.above_noise
