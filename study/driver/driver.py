"""A driver: one process that owns a study's lease, asks the cluster for room, and tells its trials what to do.

What becomes of trials is kept by `study.driver.trials`; why no more are started, by `study.driver.closing`.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import ray

from infra.errors import ServiceError
from infra.failpoint import reach
from infra.tracking.runs import Tracker
from study.artifacts.checkpoints import delete_superseded, trial_prefix
from study.driver.admission import open_admission
from study.driver.board import Silence, end_the_silent, open_board
from study.driver.closing import Closing, final_state, reason_to_close
from study.driver.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from study.driver.messages import Notifier, idle_line, message_of, study_line, waiting_line
from study.driver.trial import TrialOrder
from study.driver.trials import Trials, Upcoming
from study.errors import LeaseLost
from study.report.live import LiveReport
from study.results.ranking import best_trial
from study.search.stopping import used_up
from study.store.requests import answer
from study.store.store import StudyStore
from study.tracking import project_outcome
from trainers.schema.records import Ending, Report

log = logging.getLogger("agft")
LEAVE_SECONDS = 45.0
WAIT_SECONDS, WAIT_SAID_SECONDS = 60.0, 600.0  # until a wait for the cluster is mentioned, and mentioned again


class Driver:
    """State of one driver. `say(text)` prints one line of progress."""

    def __init__(
        self,
        *,
        store: StudyStore,
        heartbeat: Heartbeat,
        tracker: Tracker,
        notifier: Notifier,
        live: LiveReport,
        bucket: str,
        total: dict[str, float],
        say: Callable[[str], None],
    ) -> None:
        self.store, self.heartbeat, self.bucket = store, heartbeat, bucket
        self.notifier, self.live = notifier, live
        self.token, self.say, self.total = heartbeat.token, say, total
        self.trials = Trials(store, self.token, tracker, say)
        self.study, self.spec = self.trials.study, self.trials.spec
        self.board = open_board(self.study.slug, self.token)
        self.admission = open_admission()
        self.identity = f"{self.study.slug}/{self.token}"
        silence = self.spec.resources.silence
        self.silence = Silence(None if silence == "auto" else silence)
        self.running: dict[int, float] = {}  # number -> monotonic time of this attempt's start
        self.endings: dict[int, Ending] = {}
        self.to_drop: dict[int, dict[str, Any]] = {}  # running trials that are to leave, with the request
        self.closing = Closing()
        self.best: int | None = None
        self.done_here = 0
        self.interrupted = False
        self.opened = self.announced = self.refused = self.idle = time.monotonic()

    # --- life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Go on from what is stored."""
        self.trials.open()
        self._look_at_the_best()

    def close(self) -> None:
        """Give everything back that is not the lease."""
        with contextlib.suppress(ray.exceptions.RayActorError):  # its node may be gone, and the cluster with it
            ray.get(self.admission.leave.remote(self.identity))
        ray.kill(self.board)

    def step(self) -> None:
        """Called at every turn of Tune's loop: obey the lease, the user and the budget."""
        clock = time.monotonic()
        if clock - self.announced > HEARTBEAT_SECONDS:
            self.announced = clock
            held = {f"{self.identity}/{number}": self.spec.resources.of_trial() for number in self.running}
            self.admission.heartbeat.remote(self.identity, held, self.spec.resources.workers)
            end_the_silent(self.silence, self.board, clock, self.say)
            self.live.wake()
        desired = self.heartbeat.study.desired
        if not self.closing:
            word, reason = reason_to_close(
                lost=self.heartbeat.lost, interrupted=self.interrupted, desired=desired,
                over=self._used_up(),
            )  # fmt: skip
            if word:
                self.say(f"{reason}: running trials end at their next report")
                self._close(Closing(word, reason, clock))
        elif self.closing.word == "pause" and desired == "stop":  # somebody changed their mind
            self._close(Closing("stop", "asked to stop", clock))
        elif self.closing.word == "lost" and clock - self.closing.since > LEAVE_SECONDS:
            raise LeaseLost(f"study {self.spec.name!r}: another driver took over, and our trials did not leave")
        if self.heartbeat.requests and self.closing.word != "lost":
            requests, self.heartbeat.requests = self.heartbeat.requests, []
            self.obey(requests)

    def _close(self, closing: Closing) -> None:
        self.closing = closing
        self.board.tell_everybody.remote(closing.told)

    def _used_up(self) -> str:
        return used_up(
            self.heartbeat.study.spec.budget, self.trials.rows.values(),
            driven_seconds=self.study.driven_seconds + time.monotonic() - self.opened,
            running_seconds=sum(self._seconds(number) for number in self.running),
            token=self.token, counts_gpus=self.spec.resources.gpus_per_worker > 0,
        )  # fmt: skip

    def is_closing(self) -> bool:
        """Whether no new trial may start. Tune may ask this for minutes without giving us another turn."""
        self.step()
        return bool(self.closing)

    def budget(self) -> int:
        """How many trials the study is to have, as of now: it can be extended while it runs."""
        return self.heartbeat.study.spec.budget.trials

    def upcoming(self) -> Upcoming | None:
        """The next trial, and what it waits for; None if there is none any more."""
        coming = self.trials.upcoming(self.heartbeat.study)
        self._look_at_idle(coming)
        return coming

    def _look_at_idle(self, coming: Upcoming | None) -> None:
        """Say so when a slot stands idle for long because the next trial has to know how an earlier one ended."""
        clock = time.monotonic()
        if coming is None or coming.awaited is None:
            self.idle = clock
        elif clock - self.idle > WAIT_SECONDS:  # it lies ahead of us after it has been said
            self.idle = clock + WAIT_SAID_SECONDS
            free, need = ray.available_resources(), self.spec.resources.of_trial()
            if all(free.get(name, 0.0) >= amount for name, amount in need.items()):
                self.say(f"room for a trial stands idle: {idle_line(coming.number, coming.awaited, self.trials.lag)}")

    def final_state(self) -> tuple[str, str]:
        """Settle what is left; the study's state and why it is in it."""
        if self.closing.word == "lost":
            raise LeaseLost(f"study {self.spec.name!r}: another driver took over")
        if self.closing.word == "pause" and self.store.load().desired == "stop":  # asked while the last trial left
            self.closing = Closing("stop", "asked to stop")
        if self.closing.word in ("stop", "budget"):
            self.trials.settle(self.closing)
        still = self.trials.stands_still(self.heartbeat.study) if self.trials.short_of(self.heartbeat.study) else ""
        state, reason = final_state(self.closing, list(self.trials.rows.values()), still)
        if state == "paused" and not self.closing:
            self.say(f"{reason}; run again to go on with them")
        return state, reason

    # --- what users ask of trials --------------------------------------------------------------------------------

    def obey(self, requests: list[dict[str, Any]]) -> None:
        """Run trials again, take trials out. A trial that still runs leaves first."""
        for request in requests:
            number = request["number"]
            if number in self.running and request["kind"] == "drop":
                if number not in self.to_drop:
                    self.to_drop[number] = request  # answered when it has left
                    self.board.drop.remote(number)
                    self.say(f"trial {number:>3}  is to be dropped: it leaves at its next report")
                continue
            outcome = self.trials.obey(request)
            reach("request.obeyed")
            answer(self.store, self.token, request["id"], outcome)
            self.say(f"trial {number:>3}  {outcome}")

    # --- what the searcher calls ---------------------------------------------------------------------------------

    def admit(self, number: int) -> bool:
        """A slot for one more trial, if the cluster has one."""
        wanted, need = self.spec.resources, self.spec.resources.of_trial()
        asked = self.admission.ask.remote(
            self.identity, f"{self.identity}/{number}", need, self.total, wanted.priority, wanted.workers
        )
        granted, clock = bool(ray.get(asked)), time.monotonic()
        if granted or self.running:
            self.refused = clock
        elif clock - self.refused > WAIT_SECONDS:
            self.refused = clock + WAIT_SAID_SECONDS
            self.say(waiting_line(number, need, ray.cluster_resources(), ray.available_resources()))
        return granted

    def begin(self, number: int) -> dict[str, Any]:
        """Store the start of a trial, or of another attempt at it; returns Tune's settings."""
        row = self.trials.begin(number)
        if row.finishing:
            ray.get(self.board.forget.remote(number))
        self.running[number] = time.monotonic()
        self.silence.start(number, self.running[number])
        wanted = self.spec.resources
        return TrialOrder(
            study=self.study.slug, number=number, token=self.token, bucket=self.bucket, known=row.kept,
            stored=row.last.epoch if row.last else 0, config=row.config, rungs=self.trials.rungs(row),
            workers=wanted.workers, cpus_per_worker=wanted.cpus_per_worker, gpus_per_worker=wanted.gpus_per_worker,
        ).settings()  # fmt: skip

    def result(self, number: int, result: dict[str, Any]) -> None:
        """What a trial says: commit its epochs, judge it at a rung; or that it leaves."""
        if "ending" in result:
            self.endings[number] = Ending.model_validate_json(result["ending"])
        if "report" not in result or self.closing.word == "lost":
            return
        self.silence.report(number, time.monotonic())
        report = Report.model_validate_json(result["report"])
        row = self.trials.report(number, report, device_seconds=self._seconds(number))
        self.board.have.remote(number, row.last.epoch if row.last else 0)
        if report.epoch in self.trials.rungs(row):
            self.board.publish.remote(number, report.epoch, self.trials.judge(number, report.epoch))
            reach("verdict.published")

    def end(self, number: int, error: bool) -> None:
        """The trial's process is gone; store how it ended."""
        seconds = self._seconds(number)
        del self.running[number]
        self.silence.end(number)
        self.admission.give_back.remote(self.identity, f"{self.identity}/{number}")
        if self.closing.word == "lost":
            return
        reach("outcome.received")
        ending = self.endings.pop(number, None)
        if ending is None:  # without a word: its process died, or it simply returned
            ending = Ending(outcome="interrupted" if self.closing else "failed")
        if number in self.to_drop:
            self.trials.leave(number, "dropped", device_seconds=seconds)
            self.obey([self.to_drop.pop(number)])
            return
        if ending.outcome in ("paused", "interrupted"):
            self.trials.leave(number, ending.outcome, device_seconds=seconds)
            if not self.closing:  # it left though nobody asked: the board is gone, and the others will leave too
                self.closing = Closing("pause", "the trials lost their driver's board", time.monotonic())
            return
        if ending.outcome == "failed" and not ending.failure_kind:
            ending = ending.model_copy(update={"failure_kind": "pre-empted" if error else "bug"})
        row = self.trials.end(number, ending, self.closing, device_seconds=seconds)
        try:
            delete_superseded(trial_prefix(self.bucket, self.study.slug, number), row.kept)
        except (ServiceError, OSError) as problem:
            log.warning("trial %s: older checkpoints could not be deleted: %s", number, problem)
        reach("outcome.tidied")
        project_outcome(self.trials.tracker, self.study, row)
        if row.state == "failed":
            last = (row.stop_reason or "no message").splitlines()[-1]
            self.say(f"trial {number:>3}  failed ({row.failure_kind}): {shorten(last, 200, placeholder=' ...')}")
        self._say_progress(number)

    def _say_progress(self, newest: int) -> None:
        """How far the study is now that trial `newest` has ended, and when it may end at this driver's pace so far."""
        self.trials.project_best(newest)
        before, counted = self.best, self.trials.counted()
        self._look_at_the_best()
        if self.best not in (None, before):
            self.notifier.send("new_best", message_of(self.study, "running", list(self.trials.rows.values())))
        self.done_here += 1
        pruned = sum(row.state == "pruned" for row in counted)
        pace = (time.monotonic() - self.opened) / self.done_here
        again = sum(row.rerun_of is not None for row in counted)
        self.say(study_line(sum(row.finished for row in counted), self.budget() + again, pruned, pace))

    def _look_at_the_best(self) -> None:
        rows = list(self.trials.rows.values())
        best = best_trial(rows, self.trials.goal)
        self.best = best.number if best else None

    def _seconds(self, number: int) -> float:
        """Device-seconds of this attempt so far."""
        wanted = self.spec.resources
        return (time.monotonic() - self.running[number]) * wanted.workers * (wanted.gpus_per_worker or 1.0)
