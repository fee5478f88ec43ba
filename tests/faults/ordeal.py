"""Studies under one fault: drive, strike at random moments, go on by `agft resume` until they end, and look."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from infra.services import Services
from study.store.rows import TrialRow
from tests.faults.injections import Fault, NothingThere
from tests.faults.invariants import broken, in_mlflow
from tests.faults.stage import Kind, Stage, stage
from tests.support.light import BASELINE
from tests.support.worlds import found, run_world
from trainers.schema.records import Measurement

LOOK_SECONDS = 0.3
STALL_SECONDS = 400.0  # nothing new in the store for so long, though nothing is broken any more
MOST_DRIVERS, MOST_MISSED = 40, 3  # drivers of one study, studies in a row that no fault has struck


@dataclass(frozen=True)
class Reference:
    """What so many trials find without any fault, from `baseline`, the unmodified model's accuracies."""

    found: Callable[[int], list[dict[str, Any]]]
    baseline: Measurement


@dataclass(frozen=True)
class Strike:
    """One injection, and how far the trials were that ran then."""

    at_ms: float
    trials: tuple[tuple[int, str], ...]  # number, group of workers


@dataclass
class Result:
    """What became of the studies of one fault and one kind of trials. Seconds of lost work: one number a strike."""

    fault: str
    kind: str
    times: int = 0
    studies: int = 0
    trials: int = 0
    completed: int = 0
    drivers: int = 0
    seconds: float = 0.0
    lost: list[float] = field(default_factory=list)
    struck: dict[str, int] = field(default_factory=dict)  # of a soak
    violations: list[str] = field(default_factory=list)
    first: float | None = None  # of the strikes

    def struck_for(self) -> float:
        """Seconds since the first strike."""
        return 0.0 if self.first is None else time.monotonic() - self.first

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        middle = round(statistics.median(self.lost), 1) if self.lost else None
        worst = round(max(self.lost), 1) if self.lost else None
        values = {key: value for key, value in asdict(self).items() if key not in ("lost", "first")}
        return {**values, "seconds": round(self.seconds), "lost_median": middle, "lost_worst": worst}


def group_of(row: TrialRow) -> str:
    """Which workers are at it (`aTOKEN.GROUP`): the attempt's first ones, until the store has a state of later ones."""
    return max(f"a{row.attempts[-1].token:06d}.001", Path(row.latest.uri).parent.name if row.latest else "")


@dataclass
class Watch:
    """Looks at the store again and again: which workers each epoch was stored by, and when anything changed."""

    stage: Stage
    groups: dict[tuple[int, int], str] = field(default_factory=dict)
    seen: Any = None
    changed: float = field(default_factory=time.monotonic)

    def look(self) -> None:
        rows = self.stage.read()
        for row in rows:
            for record in row.epochs:
                self.groups.setdefault((row.number, record.epoch), group_of(row))
        seen = [(row.state, len(row.epochs), len(row.attempts)) for row in rows]
        if seen != self.seen:
            self.seen, self.changed = seen, time.monotonic()

    def wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self.look()
            time.sleep(min(left, LOOK_SECONDS))

    def strike(self) -> Strike:
        """As things are, just before one."""
        return Strike(time.time() * 1000, tuple((row.number, group_of(row)) for row in self.stage.running()))

    def lost(self, strike: Strike) -> float:
        """Seconds of training that were done twice: of each trial that went on in other workers, the time from the end
        of its last epoch that counts, or from its start, to the strike. One that was stopped early and is trained to
        its end later loses nothing."""
        rows, total = {row.number: row for row in self.stage.read()}, 0.0
        for number, group in strike.trials:
            row = rows[number]
            ends = [(record.timestamp_ms, record.epoch) for record in row.epochs]
            later = [epoch for end, epoch in ends if end > strike.at_ms]
            started = [attempt.started_ms for attempt in row.attempts if attempt.started_ms <= strike.at_ms]
            before = [end for end, _ in ends if end <= strike.at_ms] + started
            if later and row.verdicts.get(min(later) - 1) == "stop":
                continue
            if later and self.groups.get((number, min(later)), group) != group:
                total += (strike.at_ms - max(before)) / 1000
        return total


def endure(
    stage: Stage,
    name: str,
    fault: Fault,
    times: int,
    reference: Reference,
    *,
    seconds: float = math.inf,
    trials: int = 0,
) -> Result:
    """Studies under `fault` until it has struck so many times, or for so long (the last one is driven to its end).

    `trials`: of a study, where it is not to be as usual.
    """
    result, began = Result(name, stage.kind.name), time.monotonic()
    missed = 0
    while result.times < times or not result.studies:
        before, result.trials = result.times, trials or fault.trials or stage.kind.trials
        stage.create(f"{name}-{result.kind}-{result.studies}", result.trials)
        _one_study(stage, fault, times - result.times, reference, result, seconds)
        missed = 0 if result.times > before else missed + 1
        if missed == MOST_MISSED and times:
            result.violations.append(f"{MOST_MISSED} studies ended before the fault could strike")
        if fault.soak or missed == MOST_MISSED or not times or result.struck_for() > seconds:
            break
    result.violations += stage.violations
    result.struck = dict(Counter(stage.struck))
    result.seconds = time.monotonic() - began
    return result


def _one_study(
    stage: Stage, fault: Fault, times: int, reference: Reference, result: Result, seconds: float
) -> None:  # fmt: skip
    watch, strikes, due = Watch(stage), [], None
    wanted = 1 if fault.alone else math.inf if fault.soak else times
    result.studies += 1
    first = stage.drivers
    stage.start()
    while not (ended := _ended(stage)):
        watch.look()
        if time.monotonic() - watch.changed > STALL_SECONDS:
            result.violations.append(f"nothing new for {STALL_SECONDS:.0f} s; {stage.last_words()}")
            stage.end()
            watch.changed = time.monotonic()
        if stage.drivers - first > MOST_DRIVERS:
            result.violations.append(f"not complete after {MOST_DRIVERS} drivers; {stage.last_words()}")
            stage.end()
            break
        clock = time.monotonic()
        if len(strikes) < wanted and result.struck_for() <= seconds and fault.ready(stage):
            due = due or clock + stage.moments.uniform(*(fault.gap or stage.kind.gap))
            if clock >= due and stage.driver is not None and stage.driver.poll() is None:
                due = None
                strike = watch.strike()
                try:
                    with fault.strike(stage):
                        result.first = result.first or clock
                        strikes.append(strike)
                        watch.wait(stage.moments.uniform(*fault.hold))
                except NothingThere:
                    continue
                watch.changed = time.monotonic()
        time.sleep(LOOK_SECONDS)
    watch.look()
    result.times += len(strikes)
    result.lost += [watch.lost(strike) for strike in strikes if fault.timed]
    if ended:
        if list(in_mlflow(stage, stage.study(), stage.store.trials())):
            stage.start().wait(600)  # what MLflow lacks is sent again by the next driver
        violations = broken(stage, reference.found(stage.trials))
        result.violations += [f"{stage.name}: {violation}" for violation in violations]
        result.completed += not violations
    result.drivers += stage.drivers - first


def _ended(stage: Stage) -> bool:
    """Whether the study has ended; a driver that left before is followed by another."""
    assert stage.driver is not None
    code = stage.driver.poll()
    if code is None:
        return False
    stage.look_behind()
    if code == 0 and stage.study().state == "finished":
        return True
    stage.start()
    return False


def undisturbed(folder: Path, services: Services, kind: Kind) -> Reference:
    """Of this kind: light trials are simulated, others run once, and of a longer study of theirs only the first trials
    can be compared."""

    @cache
    def simulated(trials: int) -> list[dict[str, Any]]:
        return run_world(f"sqlite:///{folder}/world-{trials}.db", kind.spec("world", trials), seed=1, kills=0.0)

    if kind.seconds:
        return Reference(simulated, BASELINE)
    with stage(folder, services, kind, random.Random(1), None) as alone:
        alone.create("undisturbed")
        assert alone.start().wait(1200) == 0, alone.last_words()
        driven, measured = found(alone.store), alone.study().baseline
    assert measured is not None
    return Reference(lambda trials: driven, measured)
