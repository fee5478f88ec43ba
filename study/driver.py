"""A driver: one process that owns a study's lease and turns what happens into stored facts.

Order of every step: the study store first, then Optuna, then the board and MLflow. What a crash cuts off after the
first write is made up from the store by the next driver.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Callable
from typing import Any

import ray
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from infra.tracking import Tracker
from study.admission import open_admission
from study.board import open_board
from study.config import StudyConfig
from study.errors import LeaseLost
from study.files import delete_superseded, trial_prefix
from study.projection import project_best, project_epochs, project_outcome, project_study, project_trial
from study.schedule import asha_verdict, rungs, score
from study.searcher import OptunaBook
from study.space import apply_params, shown
from study.store import LEASE_SECONDS, StudyRow, StudyStore, TrialRow
from study.trial import TrialOrder
from trainers.config import TrialConfig

__all__ = ["HEARTBEAT_SECONDS", "Driver", "Heartbeat"]

log = logging.getLogger("agft")
HEARTBEAT_SECONDS = 5.0
LEAVE_SECONDS = 45.0


class Heartbeat(threading.Thread):
    """Keeps the lease, adds up driving time, and learns what users want (`run`, `pause`, `stop`)."""

    def __init__(self, store: StudyStore, token: int) -> None:
        super().__init__(name="agft-heartbeat", daemon=True)
        self.store, self.token = store, token
        self.desired, self.lost = "run", False
        self.ended = threading.Event()
        self.heard = time.monotonic()

    def run(self) -> None:
        counted = time.monotonic()
        while not self.ended.wait(HEARTBEAT_SECONDS):
            clock = time.monotonic()
            try:
                self.desired = self.store.renew(self.token, driven=clock - counted)
                counted = self.heard = clock
            except LeaseLost:
                self.lost = True
                return
            except SQLAlchemyError as error:
                log.warning("the study database does not answer (%s)", type(error).__name__)
                if clock - self.heard > LEASE_SECONDS:
                    self.lost = True  # another driver may have taken over by now
                    return

    def stop(self) -> None:
        """End the thread; up to one beat of driving time stays uncounted."""
        self.ended.set()
        self.join()


class Driver:
    """State of one driver. `say(text)` prints one line of progress."""

    def __init__(
        self,
        *,
        store: StudyStore,
        spec: StudyConfig,
        token: int,
        tracker: Tracker,
        bucket: str,
        total: dict[str, float],
        say: Callable[[str], None],
    ) -> None:
        self.store, self.spec, self.token, self.tracker, self.bucket = store, spec, token, tracker, bucket
        self.say, self.total = say, total
        self.study: StudyRow = store.load()
        assert self.study.baseline is not None, "the unmodified model is measured before the first trial"
        self.goal = spec.goal.resolve(self.study.baseline)
        self.base = spec.base(self.goal)
        self.dimensions = spec.dimensions()
        self.rungs = rungs(spec.scheduler, spec.train.epochs)
        self.book = OptunaBook(store, spec, self.goal.at_least)
        self.heartbeat = Heartbeat(store, token)
        self.board = open_board(spec.name, token)
        self.admission = open_admission()
        self.identity = f"{spec.name}/{token}"
        self.running: dict[int, float] = {}  # number -> monotonic time of this attempt's start
        self.outcomes: dict[int, dict[str, Any]] = {}
        self.closing_word = ""  # why no new trials start: pause, stop, budget, lost
        self.closing_since = 0.0
        self.done_here = 0
        self.interrupted = False
        self.opened = self.announced = time.monotonic()
        self.device_seconds = sum(row.device_seconds for row in store.trials())  # of attempts that have ended

    # --- life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Project what is stored, bring Optuna in line, start the heartbeat."""
        self.heartbeat.start()
        self.book.enqueue_warm_starts()
        project_study(self.tracker, self.study)
        for trial in self.store.trials():
            project_trial(self.tracker, self.study, trial)
            project_epochs(self.tracker, self.study, trial.number, trial.epochs)
            if trial.finished:
                project_outcome(self.tracker, self.study, trial)
        project_best(self.tracker, self.study, self.store.trials())

    def close(self) -> None:
        """Give everything back that is not the lease."""
        self.heartbeat.stop()
        ray.get(self.admission.leave.remote(self.identity))
        ray.kill(self.board)

    def step(self) -> None:
        """Called at every turn of Tune's loop: obey the lease, the user and the budget."""
        if time.monotonic() - self.announced > HEARTBEAT_SECONDS:
            self.announced = time.monotonic()
            held = {f"{self.identity}/{number}": self.need() for number in self.running}
            self.admission.heartbeat.remote(self.identity, held)
        if not self.closing_word:
            word = self._reason_to_close()
            if word:
                self.closing_word, self.closing_since = word, time.monotonic()
                self.board.tell_everybody.remote("stop" if word in ("stop", "budget") else "pause")
        elif self.closing_word == "lost" and time.monotonic() - self.closing_since > LEAVE_SECONDS:
            raise LeaseLost(f"study {self.spec.name!r}: another driver took over, and our trials did not leave")

    def _reason_to_close(self) -> str:
        if self.heartbeat.lost:
            self.say("another driver has taken over this study; leaving")
            return "lost"
        if self.interrupted:
            return "pause"
        if self.heartbeat.desired in ("pause", "stop"):
            self.say(f"asked to {self.heartbeat.desired}: running trials end at their next report")
            return self.heartbeat.desired
        if over := self._over_budget():
            self.say(f"{over}: running trials end at their next report")
            return "budget"
        return ""

    def _over_budget(self) -> str:
        budget = self.spec.budget
        clock = time.monotonic()
        driven = self.study.driven_seconds + clock - self.opened
        if budget.hours is not None and driven > budget.hours * 3600:
            return f"the budget of {budget.hours:g} hours is used up"
        if budget.gpu_hours is not None and self.spec.resources.gpus_per_worker:
            running = sum((clock - since) * self._devices() for since in self.running.values())
            if self.device_seconds + running > budget.gpu_hours * 3600:
                return f"the budget of {budget.gpu_hours:g} GPU-hours is used up"
        return ""

    def closing(self) -> bool:
        """Whether no new trial may start. Tune may ask this for minutes without giving us another turn."""
        self.step()
        return bool(self.closing_word)

    # --- what the searcher calls ---------------------------------------------------------------------------------

    def need(self) -> dict[str, float]:
        """Resources of a whole trial."""
        wanted = self.spec.resources
        need = {"CPU": wanted.workers * wanted.cpus_per_worker, "GPU": wanted.workers * wanted.gpus_per_worker}
        return {name: amount for name, amount in need.items() if amount}

    def admit(self, number: int) -> bool:
        """A slot for one more trial, if the cluster has one."""
        return bool(
            ray.get(self.admission.ask.remote(self.identity, f"{self.identity}/{number}", self.need(), self.total))
        )

    def begin(self, number: int, params: dict[str, Any]) -> dict[str, Any]:
        """Store the start of a trial, or of another attempt at it; returns Tune's settings."""
        config = apply_params(self.base, params, self.dimensions)
        # An impossible one is refused where the trial starts, and fails like any other: raised here, it would come
        # back as the first trial of every driver.
        with contextlib.suppress(ValidationError):
            config = TrialConfig.model_validate(config).model_dump(mode="json")
        self.store.start_trial(self.token, number, params, config)
        self.running[number] = time.monotonic()
        project_trial(self.tracker, self.study, self.row(number))
        sampled = ", ".join(f"{path.rpartition('.')[2]} {shown(path, value)}" for path, value in params.items())
        self.say(f"trial {number:>3}  {'continues' if self.row(number).epochs else 'starts'}   {sampled}")
        wanted = self.spec.resources
        return TrialOrder(
            study=self.spec.name, number=number, token=self.token, bucket=self.bucket,
            config=config, rungs=self.rungs, workers=wanted.workers,
            cpus_per_worker=wanted.cpus_per_worker, gpus_per_worker=wanted.gpus_per_worker,
        ).settings()  # fmt: skip

    def row(self, number: int) -> TrialRow:
        """One trial, read back."""
        return next(row for row in self.store.trials() if row.number == number)

    def result(self, number: int, result: dict[str, Any]) -> None:
        """A report: commit its epochs, tell Optuna, judge it at a rung, show it."""
        if "outcome" in result:
            self.outcomes[number] = json.loads(result["outcome"])
        if "history" not in result or self.closing_word == "lost":
            return
        files = json.loads(result["files"])
        seconds = (time.monotonic() - self.running[number]) * self._devices()
        fresh = self.store.record(
            self.token, number, json.loads(result["history"]), latest=files.get("latest"), best=files.get("best"),
            device_seconds=seconds, provenance=json.loads(result["provenance"]),
        )  # fmt: skip
        for record in fresh:
            value = score(record, self.goal.metric, self.goal.at_least)
            self.book.observe(number, record["epoch"], value)
            self.say(_progress(number, record, self.spec.train.epochs))
        project_epochs(self.tracker, self.study, number, fresh)
        epoch = int(result["epoch"])
        if epoch in self.rungs:
            self._judge(number, epoch)

    def _judge(self, number: int, epoch: int) -> None:
        everyone = self.store.trials()
        trial = next(row for row in everyone if row.number == number)
        decision, reason = asha_verdict(
            trial, everyone, rung=epoch, metric=self.goal.metric, at_least=self.goal.at_least,
            factor=self.spec.scheduler.reduction_factor,
        )  # fmt: skip
        decision = self.store.decide(self.token, number, epoch, decision, reason)
        self.board.publish.remote(number, epoch, decision)
        if decision == "stop":
            self.say(f"trial {number:>3}  is stopped early: {reason}")

    def end(self, number: int, error: bool) -> None:
        """The trial's process is gone; store how it ended."""
        self.device_seconds += (time.monotonic() - self.running.pop(number)) * self._devices()
        ray.get(self.admission.give_back.remote(self.identity, f"{self.identity}/{number}"))
        if self.closing_word == "lost":
            return
        outcome = self.outcomes.pop(number, None)
        word = outcome["outcome"] if outcome else ("interrupted" if self.closing_word else "failed")
        if word in ("paused", "interrupted"):
            self.store.end_attempt(self.token, number, word)
            if not self.closing_word:  # it left though nobody asked: the board is gone, and the others will leave too
                self.closing_word, self.closing_since = "pause", time.monotonic()
            return
        state = {"finished": "complete", "stopped": "pruned"}.get(word, "failed")
        kind = ((outcome or {}).get("failure_kind") or "pre-empted") if state == "failed" else None
        self.store.finish_trial(
            self.token, number, state, stop_reason=self._why(number, state, outcome), failure_kind=kind
        )
        row = self.row(number)
        self.book.tell(row)
        delete_superseded(trial_prefix(self.bucket, self.spec.name, number))
        project_outcome(self.tracker, self.study, row)
        if state == "failed":
            self.say(f"trial {number:>3}  failed ({kind}): {(row.stop_reason or 'no message').splitlines()[-1]}")
        self._say_progress()

    def _say_progress(self) -> None:
        """How far the study is, and when it may end at this driver's pace so far."""
        trials = self.store.trials()
        project_best(self.tracker, self.study, trials)
        done = sum(row.finished for row in trials)
        self.done_here += 1
        left = self.spec.budget.trials - done
        seconds = (time.monotonic() - self.opened) / self.done_here * left
        pruned = sum(row.state == "pruned" for row in trials)
        eta = f", about {_duration(seconds)} left" if left else ""
        self.say(f"{done} of {self.spec.budget.trials} trials done ({pruned} stopped early){eta}")

    def _why(self, number: int, state: str, outcome: dict[str, Any] | None) -> str | None:
        if state == "complete":
            return None
        if state == "failed":
            return (outcome or {}).get("message") or "the trial's process ended without a word"
        stops = [epoch for epoch, decision in self.row(number).verdicts.items() if decision == "stop"]
        return f"asha at epoch {max(stops)}" if stops else f"study: {self.closing_word or 'stopped'}"

    def _devices(self) -> float:
        wanted = self.spec.resources
        return wanted.workers * (wanted.gpus_per_worker or 1.0)


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{max(1, round(seconds / 60))} min"


def _progress(number: int, record: dict[str, Any], epochs: int) -> str:
    best = " (best so far)" if record["best_epoch"] == record["epoch"] else ""
    floor = "" if record["feasible"] else "  below its floor"
    return (
        f"trial {number:>3}  epoch {record['epoch']}/{epochs}  clean {record['clean_accuracy']:6.1%}  "
        f"robust {record['robust_accuracy']:6.1%}{best}{floor}"
    )
