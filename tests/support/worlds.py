"""A study driven in simulated time: slots of different speed, a driver and workers that are killed, by a seed.

Store, searcher, book-keeping and rules are the service's own (`tests.support.hand`); the training is the curve of
`tests.support.light`.
"""

from __future__ import annotations

import json
import random
from types import SimpleNamespace
from typing import Any

from study.spec.config import StudyConfig
from study.store.rows import TrialRow
from study.store.store import StudyStore
from tests.support.epochs import weights
from tests.support.hand import Hand
from tests.support.light import BASELINE, _record, create_measured, response
from trainers.schema.records import Ending

ELSEWHERE = "another-host|17|0.00|m.b.1"  # a driver that this machine cannot look at: its lease has run out


def run_world(url: str, spec: StudyConfig, seed: int, *, slots: int = 3, kills: float = 0.03) -> list[dict[str, Any]]:
    """Drive the study to its end in world `seed`; what it found (`found`). `kills`: chance at every event that the
    driver dies, and again that the trial's workers do."""
    world = random.Random(seed)
    store = StudyStore(url, spec.name)
    create_measured(store, spec, BASELINE)
    speeds = [world.uniform(0.2, 5.0) for _ in range(slots)]
    while True:
        hand = Hand(store, slots=slots, owner=ELSEWHERE, seconds=0.0)
        over = _drive(hand, speeds, world, kills)
        hand.trials.tracker.close(0.0)
        if over:
            return found(store)


def _drive(hand: Hand, speeds: list[float], world: random.Random, kills: float) -> bool:
    """One driver's life; False if it was killed."""
    clock, free, running = 0.0, list(range(len(speeds))), {}
    begun: set[int] = set()  # trials whose workers have said nothing yet

    def busy(number: int) -> None:
        running[number] = (clock + speeds[running[number][1]] * world.uniform(0.5, 1.5), running[number][1])

    while True:
        while free and isinstance(settings := hand.start(), dict):
            running[settings["number"]] = (clock, free.pop(world.randrange(len(free))))
            begun.add(settings["number"])
            busy(settings["number"])
        if not running:
            return True
        number = min(running, key=lambda each: running[each])
        clock = running[number][0]
        if world.random() < kills:
            return False
        row = hand.trials.rows[number]
        if world.random() < kills:
            begun.add(number)  # its workers die, and new ones go on from the newest checkpoint
        if number in begun and row.epochs:
            records: tuple[Any, ...] = row.epochs[-1:]  # who goes on tells the last record again
        else:
            epoch = len(row.epochs) + 1
            point = response(row.config)[epoch - 1]
            records = (_record(SimpleNamespace(config=row.config), list(row.epochs), point),)  # type: ignore[arg-type]
        begun.discard(number)
        if world.random() < kills:
            return False  # after the checkpoint, before the driver heard of it
        hand.report(number, *records, latest=weights(f"s3://b/{number}/{records[-1].epoch}"))
        row, epoch = hand.trials.rows[number], records[-1].epoch
        word = "continue"
        if epoch in hand.trials.rungs(row):
            word = hand.trials.judge(number, epoch)
            if world.random() < kills:
                return False  # after the verdict, before the trial left
        last = row.config["train"]["epochs"]
        if word == "stop" or epoch == last:
            hand.end(number, Ending(outcome="stopped" if word == "stop" and epoch < last else "finished"))
            free.append(running.pop(number)[1])
        else:
            busy(number)


def found(store: StudyStore) -> list[dict[str, Any]]:
    """All that a study found, as JSON values, without times: trials, records, verdicts with their reasons."""
    return [_facts(row) for row in store.trials()]


def _facts(row: TrialRow) -> dict[str, Any]:
    facts = {
        "number": row.number, "state": row.state, "params": row.params, "config": row.config, "origin": row.origin,
        "stop_reason": row.stop_reason, "memory": row.memory, "finishing": row.finishing, "verdicts": row.verdicts,
        "reasons": row.reasons, "epochs": [record.repeatable() for record in row.epochs],
    }  # fmt: skip
    return json.loads(json.dumps(facts, sort_keys=True))
