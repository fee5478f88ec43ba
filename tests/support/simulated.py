"""A study in memory: the study's own proposals, verdicts and rules, a simulated clock, and slots of random speed.

No Ray, no database, no training: a trial's counts come from a smooth function of its parameters. What users do to a
study is a script: after so many trials have started, drop, rerun or extend.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from study.driver.closing import Closing, ended
from study.results.status import ALL_DONE
from study.search import knowledge
from study.search.proposals import Proposer, given, pending
from study.search.stopping import rungs, stands_still, to_finish, verdict
from study.spec.config import StudyConfig
from study.spec.dimension import apply_params
from study.spec.starts import Observation, Start
from study.store import tables as t
from study.store.archive import FORMAT, SUM, seal
from study.store.rows import TrialRow
from tests.support.epochs import weights
from tests.support.light import response
from trainers.schema.records import GAP_UNIT, Ending, EpochRecord, Measurement, Score, accuracy_of, standing
from trainers.trial_config import TrialConfig

IMAGES = 1000
PROVENANCE = {
    "code": {"revision": "0" * 40, "dirty": False}, "packages": {"torch": "2"}, "python": "3", "hostname": "simulated",
    "inputs": {"train": "0" * 64},
}  # fmt: skip
Action = tuple[str, int]  # drop or rerun a trial, or extend by so many


def counts(sets: Iterable[str], clean: float, robust: float) -> dict[str, dict[str, Score]]:
    """Of sets that are a little easier, one after the other; the more robust, the worse calibrated."""
    found = {}
    for place, name in enumerate(sets):
        right, held = (min(IMAGES, round(IMAGES * share) + 7 * place) for share in (clean, robust))
        held = min(right, held)
        gaps = (held * GAP_UNIT // 3, (IMAGES - held) * GAP_UNIT // 2)
        found[name] = {"4/255": Score.of(correct=right, robust=held, total=IMAGES, gaps=gaps)}
    return found


@dataclass
class Simulation:
    """One study. `faults`: trial -> the epoch in which it fails; `script`: trials started -> what users do then."""

    spec: StudyConfig
    seed: int = 0
    slots: int = 3
    faults: Mapping[int, int] = field(default_factory=dict)
    script: Mapping[int, list[Action]] = field(default_factory=dict)
    prior: Sequence[Start] = ()  # what earlier studies give
    observed: Sequence[Observation] = ()  # and what is known of them

    def __post_init__(self) -> None:
        self.filed, self.random, self.clock = self.spec, random.Random(self.seed), 0.0
        datasets = counts(self.spec.data.dev, 0.73, 0.22)
        self.baseline = Measurement(**vars(accuracy_of(datasets)), datasets=datasets)
        self.goal = self.spec.goal.resolve(self.baseline)
        self.lag = self.slots + 1 if self.spec.lag == "auto" else self.spec.lag
        self.dimensions = self.spec.dimensions()
        self.starts = given(self.spec, self.dimensions, self.prior)
        self.proposer = Proposer(self.spec, self.goal, self.starts, self.observed)
        self.rows: dict[int, TrialRow] = {}
        self.line: list[int] = []
        self.requests: list[dict[str, Any]] = []
        self.running: dict[int, float] = {}  # trial -> time of its next report
        self.todo = {at: list(actions) for at, actions in self.script.items()}
        self.extended_at = 0
        self.message = ALL_DONE

    # --- the driver's part -----------------------------------------------------------------------------------------

    def run(self) -> Simulation:
        """To the end."""
        while True:
            self._obey()
            while len(self.running) < self.slots and self._start():
                self._obey()
            if not self.running:
                return self
            number = min(self.running, key=lambda n: self.running[n])
            self.clock = self.running.pop(number)
            self._report(number)

    def _obey(self) -> None:
        for action, number in self.todo.pop(len(self.rows), []):
            outcome, note = {"rerun": "in line again", "drop": "dropped", "extend": "extended"}[action], ""
            if action == "rerun":
                self.line.append(number)
            elif action == "drop":
                row = self.rows[number]
                self.running.pop(number, None)
                before = row.state if row.finished else None
                self.rows[number] = replace(
                    row, state="dropped", state_before=before, dropped_at=len(self.rows), stop_reason="dropped: odd",
                    failure_kind=None, ended_ms=int(self.clock),
                )  # fmt: skip
            else:
                more = {"trials": number, "hours": 0, "gpu_hours": 0}
                budget = self.spec.budget.model_copy(update={"trials": self.spec.budget.trials + number})
                self.spec = self.spec.model_copy(update={"budget": budget})
                note, number = json.dumps(more), len(self.rows)
                self.extended_at = number
            asked = {"kind": action, "number": number, "note": note, "asked_ms": 0, "done_ms": 1, "outcome": outcome}
            self.requests.append({"id": len(self.requests) + 1, "study": self.spec.name, **asked})

    def _start(self) -> bool:
        number, again = len(self.rows), sum(row.rerun_of is not None for row in self.rows.values())
        dropped = sum(row.state == "dropped" and row.rerun_of is None for row in self.rows.values())
        if number < self.spec.budget.trials + dropped + len(self.line):
            if knowledge.awaited(self.rows, number, self.lag) is not None:
                return False
            known = knowledge.known(self.rows, number, self.lag)
            why = stands_still(self.spec.budget, self.extended_at, known, self.goal)
            if not why:
                rerun_of = self.line[again] if again < len(self.line) else None
                proposal = self.proposer.propose(self.rows, number, self.lag, rerun_of=rerun_of)
                config = apply_params(self.spec.base(self.goal), proposal.params, self.dimensions)
                config = TrialConfig.model_validate(config).model_dump(mode="json")
                self.rows[number] = pending(proposal, config, int(self.clock))
                self._next(number)
                return True
            self.message = why
        if self.running or not self.spec.scheduler.finish:
            return False
        best = to_finish(list(self.rows.values()), self.goal, self.spec.scheduler.finish)
        left = next((row for row in best if not row.finishing), None)
        if left is not None:
            self.rows[left.number] = replace(self.rows[left.number], state="running", finishing=True, ended_ms=None)
            self._next(left.number)
        return left is not None

    def _next(self, number: int) -> None:
        self.running[number] = self.clock + self.random.uniform(0.2, 3.0)

    def _report(self, number: int) -> None:
        row = self.rows[number]
        epoch, epochs = len(row.epochs) + 1, row.config["train"]["epochs"]
        if self.faults.get(number) == epoch:
            self._end(number, Ending.failed("non-finite", "the loss is nan"))
            return
        row = self.rows[number] = replace(row, epochs=(*row.epochs, self._record(row)))
        word = "continue"
        if not row.finishing and epoch in rungs(self.spec.scheduler, epochs):
            known = knowledge.known(self.rows, number, self.lag)
            word, reason = verdict(self.spec.scheduler, row, known, epoch=epoch, goal=self.goal)
            row.verdicts[epoch], row.reasons[epoch] = word, reason
        if word == "stop" or epoch == epochs:
            self._end(number, Ending(outcome="finished" if epoch == epochs else "stopped"))
        else:
            self._next(number)

    def _end(self, number: int, ending: Ending) -> None:
        state, why = ended(self.rows[number], ending, self.spec.scheduler, self.goal, Closing())
        kind = ending.failure_kind if state == "failed" else None
        self.rows[number] = replace(
            self.rows[number], state=state, stop_reason=why, failure_kind=kind, ended_ms=int(self.clock),
            best=weights(f"s3://b/{number}/best", f"{number:064d}"),
        )  # fmt: skip

    def _record(self, row: TrialRow) -> EpochRecord:
        epoch = len(row.epochs) + 1
        clean, robust, seconds = response(row.config)[epoch - 1]
        datasets = counts(self.spec.data.dev, clean, min(clean, robust))
        now = accuracy_of(datasets)
        return EpochRecord(
            epoch=epoch, timestamp_ms=int(self.clock * 1000), steps=8 * epoch, train_loss=0.5**epoch, parts={}, lr=1e-3,
            grad_norm=1.0, **vars(now), datasets=datasets, **standing(epoch, now, row.last, self.goal),
            train_seconds=seconds, eval_seconds=0.1, images_per_second=512.0,
        )  # fmt: skip

    # --- what is stored --------------------------------------------------------------------------------------------

    def content(self) -> dict[str, Any]:
        """As `agft archive` has it, without its sum."""
        spec, name = self.filed, self.filed.name
        budget = self.spec.budget.model_dump(mode="json") if self.extended_at else None
        study = {
            "name": name, "spec": spec.canonical(), "spec_hash": spec.spec_hash(), "desired": "run",
            "state": "finished", "created_ms": 1, "driven_seconds": self.clock, "token": 1,
            "baseline": self.baseline.model_dump(mode="json"), "provenance": {}, "budget": budget,
            "message": self.message, "lag": self.lag, "extended_at": self.extended_at,
            "starts": [
                *({"origin": start.origin, "values": start.values} for start in self.starts),
                *(each._asdict() for each in self.observed),
            ],
        }  # fmt: skip
        rows: dict[str, list[dict[str, Any]]] = {
            each.name: [] for each in (t.attempts, t.epochs, t.verdicts, t.promotions, t.final_accesses)
        }
        columns = set(t.trials.columns.keys()) - {"study"}
        rows[t.trials.name] = [
            {"study": name, **{key: _plain(value) for key, value in vars(row).items() if key in columns}}
            for row in self.rows.values()
        ]
        rows[t.requests.name] = self.requests
        for number, row in self.rows.items():
            key = {"study": name, "number": number}
            one = {"token": 1, "started_ms": row.started_ms, "ended_ms": row.ended_ms, "device_seconds": 1.5}
            rows[t.attempts.name].append({**key, **one, "outcome": row.state, "provenance": PROVENANCE})
            rows[t.epochs.name] += [
                {**key, "epoch": record.epoch, "record": record.model_dump(mode="json")} for record in row.epochs
            ]
            rows[t.verdicts.name] += [
                {**key, "epoch": epoch, "decision": decision, "reason": row.reasons[epoch]}
                for epoch, decision in row.verdicts.items()
            ]
        return json.loads(json.dumps({"format": FORMAT, "study": study, "rows": rows}))


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def write_archive(content: Mapping[str, Any], path: Path) -> Path:
    """With its sum, whatever the content says."""
    path.write_text(json.dumps({**content, SUM: seal(content)}))
    return path
