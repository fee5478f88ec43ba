"""One search replayed in simulated time over measured settings, by the study's own sampler, scheduler and records.

What is simulated is the clock and the training; proposals (`study.search.proposals`), what a trial knows
(`study.search.knowledge`), rungs, verdicts and the choice of the best trial (`study.results.ranking`) are the service's
code. The asynchronous rule, which the service does not have, is there to compare with: a trial starts as soon as a slot
is free, its parameters follow from all that has ended by then, and it is compared with whoever has been at the rung.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from study.results.ranking import best_trial
from study.search import knowledge
from study.search.proposals import Proposer, given, pending
from study.search.stopping import rungs, verdict
from study.spec.config import StudyConfig
from study.store.rows import TrialRow
from tests.support.landscapes import COLOR_SHAPES, Curve, Landscape
from trainers.schema.records import EpochRecord, is_better, violation
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
    "GP": {"sampler": {"name": "gp"}, "scheduler": {"name": "none"}},
    "GP + ASHA": {"sampler": {"name": "gp"}, "scheduler": {"name": "asha"}},
}


@dataclass(frozen=True)
class Replay:
    """What one search found: at `times` (seconds) its incumbent's true value became `values`.

    `claimed`: what the last incumbent reports itself. `idle`: share of the slots' time in which they were free though
    the budget was not used up. `trials`: state, epochs and parameters of every trial, by number.
    """

    times: tuple[float, ...]
    values: tuple[float, ...]
    claimed: float
    complete: int
    pruned: int
    failed: int
    idle: float = 0.0
    trials: tuple[tuple[str, int, dict[str, Any]], ...] = ()

    def at(self, clock: float) -> float:
        """The incumbent's value at a time."""
        return self.values[int(np.searchsorted(self.times, clock, side="right")) - 1]


def specification(method: str, seed: int, landscape: Landscape = COLOR_SHAPES, /, **more: Any) -> StudyConfig:
    """The study that a measured grid is of."""
    plain = {"name": "replay", **landscape.study(), "budget": {"trials": 1000}, "seed": seed, **METHODS[method]}
    return StudyConfig.model_validate({**plain, **more})


@dataclass(frozen=True)
class Seen:
    """A trial as it reports itself: `records` by epoch; `truth`: the curve's robust accuracy at its best epoch.

    Measurement noise can make another epoch than the truly best one its best; None: that one misses a floor in truth.
    """

    records: tuple[EpochRecord, ...]
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
    return Seen(tuple(map(_record, records)), robust if violation(_Accuracies(clean, robust), goal) == 0 else None)


def _record(measured: dict[str, Any]) -> EpochRecord:
    idle = {"timestamp_ms": 0, "steps": 0, "train_loss": 0.0, "parts": {}, "lr": 0.0, "grad_norm": 0.0, "datasets": {},
            "train_seconds": 0.0, "eval_seconds": 0.0, "images_per_second": 0.0}  # fmt: skip
    return EpochRecord.model_construct(**{**idle, **measured})  # a replay makes hundreds of thousands


class Slots:
    """How many are free, and the time that they were (seconds of one slot)."""

    def __init__(self, count: int) -> None:
        self.free, self.count, self.since, self.idle = count, count, 0.0, 0.0

    def advance(self, clock: float) -> None:
        """Until now it was as it is."""
        self.idle += self.free * (clock - self.since)
        self.since = clock

    @property
    def share(self) -> float:
        """Of their time up to now."""
        return self.idle / (self.count * self.since) if self.since else 0.0


def replay(
    spec: StudyConfig, landscape: Callable[[Mapping[str, float]], Curve], goal: Goal, *, fallback: float, workers: int,
    start_up: float, horizon: float, lag: int | None, images: int | None = None,
) -> Replay:  # fmt: skip
    """Run one study until `horizon` seconds, or to the end of its budget of trials.

    `lag`: trial n starts when a slot is free and trials 0 ... n-1-lag have ended, and knows those; None: the
    asynchronous rule. `fallback` is the unmodified model's value: the first incumbent, and what a winner counts that in
    truth misses a floor. `images`: as `seen`.
    """
    proposer = Proposer(spec, goal, given(spec, spec.dimensions()))
    stops = rungs(spec.scheduler, spec.train.epochs)
    config = {"train": {"epochs": spec.train.epochs}}
    rows: dict[int, TrialRow] = {}
    curves: dict[int, Curve] = {}
    found: dict[int, Seen] = {}
    times, values, claimed = [0.0], [fallback], fallback
    events: list[tuple[float, int]] = []
    slots = Slots(workers)

    def may_begin() -> bool:
        if not slots.free or len(rows) == spec.budget.trials:
            return False
        return lag is None or knowledge.awaited(rows, len(rows), lag) is None

    def begin(clock: float) -> None:
        number = len(rows)
        known = [row for row in rows.values() if row.finished] if lag is None else knowledge.known(rows, number, lag)
        rows[number] = pending(proposer.propose_from(rows, number, known), config, int(clock * 1000))
        curves[number] = landscape(rows[number].params)
        found[number] = seen(curves[number], goal, images, (spec.seed, number))
        slots.free -= 1
        heapq.heappush(events, (clock + start_up + curves[number][0][2], number))

    def end(number: int, state: str, clock: float) -> None:
        nonlocal claimed
        rows[number] = replace(rows[number], state=state, ended_ms=int(clock * 1000))
        best = best_trial(list(rows.values()), goal)
        if best is not None:
            times.append(clock)
            truth = found[best.number].truth
            values.append(fallback if truth is None else truth)
            claimed = found[best.number].records[-1].best_robust_accuracy
        slots.free += 1
        fill(clock)

    def fill(clock: float) -> None:
        while may_begin():
            begin(clock)

    def stopped(row: TrialRow, epoch: int) -> bool:
        if epoch not in stops:
            return False
        others = [other for other in rows.values() if other.number != row.number]
        known = others if lag is None else knowledge.known(rows, row.number, lag)
        return verdict(spec.scheduler, row, known, epoch=epoch, goal=goal)[0] == "stop"

    fill(0.0)
    while events and events[0][0] <= horizon:
        clock, number = heapq.heappop(events)
        if len(rows) < spec.budget.trials:
            slots.advance(clock)
        record = found[number].records[len(rows[number].epochs)]
        rows[number] = row = replace(rows[number], epochs=(*rows[number].epochs, record))
        epoch = record.epoch
        if epoch == spec.train.epochs:
            end(number, "complete", clock)
        elif stopped(row, epoch):
            end(number, "pruned", clock)
        elif epoch == len(curves[number]):
            end(number, "failed", clock)  # the loss went non-finite in the next epoch
        else:
            heapq.heappush(events, (clock + curves[number][epoch][2], number))
    states = [row.state for row in rows.values()]
    ends = (states.count(each) for each in ("complete", "pruned", "failed"))
    trials = tuple((row.state, len(row.epochs), row.params) for row in rows.values())
    return Replay(tuple(times), tuple(values), claimed, *ends, slots.share, trials)
