"""How much of the slots' time the rule of knowledge leaves idle: a study's clock, simulated without its training.

Trial n starts when a slot is free and trials 0 ... n-1-lag have ended (`study.search.knowledge`), so that a slot waits
for whoever is late. Assumed: a trial takes its start-up and as long for every epoch, times a factor of its own, normal
about 1 with a deviation of `SPREAD` (searched fields that change a trial's length can make it more); trials differ in
quality, keep their rank from rung to rung and do not get better as the study goes on; none fails; all slots are alike.
Replays of measured trials have a little less idle (`tests/bench/search_lag.py`): their trials do get better.
Whom the stopping rule ends follows from the rule itself and the trials that each knows, `patience` aside.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from study.search.knowledge import auto_lag
from study.search.stopping import rungs
from study.spec.config import SchedulerConfig, StudyConfig

SPREAD = 0.1
# What a trial takes beside its training, in seconds (`tests/bench/trial_overhead.py`), where a full trial's time is
# known; where it is not, trials are taken to be so long that it does not count: then early stopping makes the most of
# the difference between them.
START_UP_SECONDS = 1.5
SEEDS = 8
MOST = 200  # simulated trials of a long study, more with many slots: what is idle at first counts less and less


def idle_share(
    scheduler: SchedulerConfig, *, trials: int, slots: int, lag: int, epochs: int, full_seconds: float | None = None,
    start_up: float = START_UP_SECONDS,
) -> float:  # fmt: skip
    """Slot-seconds in which a slot is free though trials are left to start, by all slot-seconds up to the last start.

    `full_seconds`: from the start to the end of a trial that is not stopped, if that is known; `start_up` of them are
    not training.
    """
    start_up = 0.0 if full_seconds is None else min(start_up, full_seconds)
    epoch = 1.0 if full_seconds is None else (full_seconds - start_up) / epochs
    count = min(trials, max(MOST, 4 * slots))
    seeds = max(1, min(SEEDS, 1600 // count))
    return fmean(
        _once(scheduler, count, slots, lag, epochs, start_up, epoch, random.Random(seed)) for seed in range(seeds)
    )


def _once(
    scheduler: SchedulerConfig, trials: int, slots: int, lag: int, epochs: int, start_up: float, epoch: float,
    draws: random.Random,
) -> float:  # fmt: skip
    quality = [draws.random() for _ in range(trials)]
    factor = [max(SPREAD, draws.gauss(1.0, SPREAD)) for _ in range(trials)]
    length = _lengths(scheduler, quality, lag, epochs)
    free, idle, clock, before = [0.0] * slots, 0.0, 0.0, 0.0
    ends: list[float] = []
    for number in range(trials):
        ready = heapq.heappop(free)
        if number > lag:
            before = max(before, ends[number - 1 - lag])
        # Trials start in the order of their numbers, so that none starts before its predecessor has.
        start = max(ready, before, clock)
        idle += start - ready
        clock = start
        ends.append(start + factor[number] * (start_up + epoch * length[number]))
        heapq.heappush(free, ends[-1])
    # Slots that are free at the last start and were not taken for it.
    idle += sum(max(0.0, clock - each) for each in free)
    return idle / (slots * clock) if clock else 0.0


def _lengths(scheduler: SchedulerConfig, quality: list[float], lag: int, epochs: int) -> list[int]:
    """Epochs that each trial has, by the stopping rule."""
    found: list[int] = []
    stops = rungs(scheduler.model_copy(update={"patience": None}), epochs)
    for number, own in enumerate(quality):
        known = range(max(0, number - lag))
        found.append(next((rung for rung in stops if _stopped(scheduler, own, rung, known, quality, found)), epochs))
    return found


def _stopped(
    scheduler: SchedulerConfig, own: float, rung: int, known: range, quality: list[float], length: list[int]
) -> bool:
    others = [quality[other] for other in known if length[other] >= rung]
    return len(others) >= scheduler.min_trials and scheduler.row.verdict(scheduler, own, others)[0] == "stop"


# What `agft plan` says of the rule.


def knowledge_plan(
    spec: StudyConfig, *, slots: int | None, stored: int | None, full_seconds: float | None
) -> dict[str, Any]:
    """As JSON values. `slots`: trials that fit at once, whatever the budget; None: not known here. `stored`: the lag of
    a study that has begun."""
    lag: int | None = stored
    if lag is None and spec.lag != "auto":
        lag = spec.lag
    elif lag is None and slots is not None:
        lag = auto_lag(slots)
    origin = "store" if stored is not None else "auto" if spec.lag == "auto" else "file"
    share = None
    if lag is not None and slots is not None:
        share = idle_share(
            spec.scheduler, trials=spec.budget.trials, slots=min(slots, spec.budget.trials), lag=lag,
            epochs=spec.train.epochs, full_seconds=full_seconds,
        )  # fmt: skip
    return {"lag": lag, "lag_from": origin, "slots": slots, "at_once": None if lag is None else lag + 1,
            "idle_share": share}  # fmt: skip


def knowledge_line(plan: Mapping[str, Any]) -> str:
    """For a person: what a trial knows, how many run at once, and what is idle for it."""
    lag = plan["lag"]
    if lag is None:
        return "trial n knows trials 0 ... n-1-lag; lag: the trials that fit when the study begins, plus 1"
    origin = {"auto": ": slots + 1", "store": ", as it began", "file": ""}[plan["lag_from"]]
    line = f"trial n knows trials 0 ... n-1{f'-{lag}' if lag else ''} (lag {lag}{origin}); at most {lag + 1} at once"
    if plan["idle_share"] is None:
        return f"{line}; what is idle depends on the trials that fit"
    percent = round(100 * plan["idle_share"])
    return f"{line}; slots idle {f'about {percent}' if percent else 'less than 1'} %"


def knowledge_notes(plan: Mapping[str, Any]) -> list[str]:
    """Slots that are never used."""
    if plan["lag"] is None or plan["slots"] is None or plan["slots"] <= plan["at_once"]:
        return []
    return [
        f"lag: {plan['lag']} lets at most {plan['at_once']} trials run at once; {plan['slots']} fit on this machine"
    ]
