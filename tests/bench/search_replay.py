"""One search replayed in simulated time over measured settings, by the study's own sampler, scheduler and records.

What is simulated is the clock and the training; proposals (`study.search.samplers`), what Optuna is told
(`OptunaBook`), rungs, verdicts and the choice of the best trial (`study.results.ranking`) are the service's code.
"""

from __future__ import annotations

import heapq
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import optuna

from study.results.ranking import best_trial
from study.search import stopping as schedule
from study.search.optuna_book import OptunaBook
from study.spec.config import StudyConfig
from study.store.rows import TrialRow
from tests.support.space_table import SPACE, Curve
from trainers.schema.records import is_better, violation
from trainers.schema.training import Goal

# What follows a method's name in the study file. `startup_trials` is the default.
METHODS: dict[str, dict[str, Any]] = {
    "random": {"sampler": {"name": "random"}, "scheduler": {"name": "none"}},
    "QMC": {"sampler": {"name": "qmc"}, "scheduler": {"name": "none"}},
    "NSGA-II": {"sampler": {"name": "nsga2"}, "scheduler": {"name": "none"}},
    "CMA-ES": {"sampler": {"name": "cmaes"}, "scheduler": {"name": "none"}},
    "TPE": {"sampler": {"name": "tpe"}, "scheduler": {"name": "none"}},
    "random + ASHA": {"sampler": {"name": "random"}, "scheduler": {"name": "asha"}},
    "TPE + ASHA": {"sampler": {"name": "tpe"}, "scheduler": {"name": "asha"}},
    "TPE + median": {"sampler": {"name": "tpe"}, "scheduler": {"name": "median"}},
}


@dataclass(frozen=True)
class Replay:
    """What one search found: at `times` (seconds) its incumbent's true value became `values`.

    `claimed`: what the last incumbent reports itself.
    """

    times: tuple[float, ...]
    values: tuple[float, ...]
    claimed: float
    complete: int
    pruned: int
    failed: int

    def at(self, clock: float) -> float:
        """The incumbent's value at a time."""
        return self.values[int(np.searchsorted(self.times, clock, side="right")) - 1]


def specification(method: str, seed: int, /, **more: Any) -> StudyConfig:
    """The study of the measured grid."""
    plain = {
        "name": "replay", "model": {"arch": "tiny-clip", "pretrained": "bundled"},
        "method": {"name": "agft", "logit_scale": {"of_model": 1.0}}, "attack": {"eps": 4 / 255},
        "data": {"train": "tiny-color-shapes", "dev": ["tiny-shapes", "tiny-digits"], "confirm": ["tiny-colors"],
                 "final": ["tiny-letters"]},
        "train": {"epochs": 6, "batch_size": 64, "samples_per_epoch": 512,
                  "optimizer": {"name": "adamw", "lr": 1e-3}},
        "search": SPACE, "warm_starts": [], "budget": {"trials": 1000}, "seed": seed,
        "goal": {"metric": "robust_accuracy", "subject_to": {"clean_accuracy": ">= clip * 0.8"}},
        **METHODS[method], **more,
    }  # fmt: skip
    return StudyConfig.model_validate(plain)


@dataclass(frozen=True)
class Seen:
    """A trial as it reports itself: `records` by epoch; `truth`: the curve's robust accuracy at its best epoch.

    Measurement noise can make another epoch than the truly best one its best; None: that one misses a floor in truth.
    """

    records: tuple[dict[str, Any], ...]
    truth: float | None


@dataclass(frozen=True)
class _Accuracies:
    clean_accuracy: float
    robust_accuracy: float


def seen(curve: Curve, goal: Goal, images: int | None = None, seed: Sequence[int] = ()) -> Seen:
    """What a trial with this curve reports. With `images` its counts of so many are drawn anew, by `seed`."""
    generator = np.random.default_rng(seed)
    records: list[dict[str, Any]] = []
    best: dict[str, Any] | None = None
    for epoch, (clean, robust, _) in enumerate(curve, start=1):
        if images is not None:
            held, lost, _ = generator.multinomial(images, [robust, max(0.0, clean - robust), 1 - max(clean, robust)])
            clean, robust = (held + lost) / images, held / images
        own = _Accuracies(clean, robust)
        record = {"epoch": epoch, **vars(own), "feasible": violation(own, goal) == 0}
        if best is None or is_better(own, _Accuracies(best["clean_accuracy"], best["robust_accuracy"]), goal):
            best = record
        records.append(record | {f"best_{name}": best[name] for name in ("epoch", *vars(own), "feasible")})
    assert best is not None
    clean, robust, _ = curve[best["epoch"] - 1]
    return Seen(tuple(records), robust if violation(_Accuracies(clean, robust), goal) == 0 else None)


class MemoryBook(OptunaBook):
    """The service's Optuna study, in memory instead of a database."""

    def __init__(self, spec: StudyConfig, at_least: Mapping[Any, float]) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.spec, self.at_least, self.dimensions = spec, at_least, spec.dimensions()
        self.storage = optuna.storages.InMemoryStorage()
        self.study, self.ids = self._study("replay"), {}


def replay(
    spec: StudyConfig, landscape: Callable[[Mapping[str, float]], Curve], goal: Goal, *, fallback: float, workers: int,
    start_up: float, horizon: float, images: int | None = None,
) -> Replay:  # fmt: skip
    """Run one study until `horizon` seconds, or to the end of its budget of trials.

    `fallback` is the unmodified model's value: the first incumbent, and what a winner counts that in truth misses a
    floor. `images`: as `seen`.
    """
    book = MemoryBook(spec, goal.at_least)
    stops = schedule.rungs(spec.scheduler, spec.train.epochs)
    config = {"train": {"epochs": spec.train.epochs}}
    rows: dict[int, TrialRow] = {}
    curves: dict[int, Curve] = {}
    found: dict[int, Seen] = {}
    times, values, claimed = [0.0], [fallback], fallback
    events: list[tuple[float, int]] = []

    def begin(clock: float) -> None:
        if len(rows) == spec.budget.trials:
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            number, params = book.propose()
        curves[number] = landscape(params)
        found[number] = seen(curves[number], goal, images, (spec.seed, number))
        rows[number] = TrialRow(number, "running", params, config, int(clock * 1000))
        heapq.heappush(events, (clock + start_up + curves[number][0][2], number))

    def end(number: int, state: str, clock: float) -> None:
        nonlocal claimed
        rows[number] = replace(rows[number], state=state, ended_ms=int(clock * 1000))
        book.tell(rows[number])
        best = best_trial(list(rows.values()), goal)
        if best is not None:
            times.append(clock)
            truth = found[best.number].truth
            values.append(fallback if truth is None else truth)
            claimed = found[best.number].records[-1]["best_robust_accuracy"]
        begin(clock)

    for _ in range(workers):
        begin(0.0)
    while events and events[0][0] <= horizon:
        clock, number = heapq.heappop(events)
        record = found[number].records[len(rows[number].epochs)]
        rows[number] = row = replace(rows[number], epochs=(*rows[number].epochs, record))
        epoch = record["epoch"]
        book.observe(number, epoch, schedule.score(record, goal))
        everyone = list(rows.values())
        decision = (
            schedule.verdict(spec.scheduler, row, everyone, epoch=epoch, goal=goal)[0] if epoch in stops else "continue"
        )
        if epoch == spec.train.epochs:
            end(number, "complete", clock)
        elif decision == "stop":
            end(number, "pruned", clock)
        elif epoch == len(curves[number]):
            end(number, "failed", clock)  # the loss went non-finite in the next epoch
        else:
            heapq.heappush(events, (clock + curves[number][epoch][2], number))
    states = [row.state for row in rows.values()]
    ends = (states.count(each) for each in ("complete", "pruned", "failed"))
    return Replay(tuple(times), tuple(values), claimed, *ends)
