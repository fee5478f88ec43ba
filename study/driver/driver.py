"""A driver: one process that owns a study's lease, asks the cluster for room, and tells its trials what to do.

What becomes of trials is kept by `study.driver.trials`; why no more are started, by `study.driver.closing`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from textwrap import shorten
from typing import Any

import ray

from infra.cluster.cluster import node_capacities
from infra.cluster.watch import lost
from infra.errors import ServiceError
from infra.failpoint import reach
from infra.s3 import one_attempt
from infra.tracking.runs import Tracker
from study.artifacts.checkpoints import delete_superseded, trial_prefix
from study.driver.actors import Actor
from study.driver.admission import whole_nodes
from study.driver.away import Outage, Watch
from study.driver.board import open_board
from study.driver.closing import Closing, final_state, reason_to_close
from study.driver.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from study.driver.messages import Notifier, idle_line, interrupted_line, message_of, sign_line, study_line, waiting_line
from study.driver.seats import Seats, Work
from study.driver.silence import Silence, end_the_silent
from study.driver.trial import TrialOrder
from study.driver.trials import Trials, Upcoming
from study.errors import LeaseLost, StudyFailed
from study.report.live import LiveReport
from study.results.ranking import best_trial
from study.search.stopping import used_up
from study.store.requests import answer
from study.store.store import StudyStore
from study.tracking import project_outcome
from trainers.schema.records import Ending, Report, Sign

log = logging.getLogger("agft")
LEAVE_SECONDS = 45.0
SIGN_SAID_SECONDS = 60.0  # of an epoch that takes longer, a line so often
LOSSES = 2  # how often in a row a trial may be interrupted without a new state
WAIT_SECONDS, WAIT_SAID_SECONDS = 60.0, 600.0  # until a wait for the cluster is mentioned, and mentioned again


class Driver:
    """State of one driver. `say(text)` prints one line of progress; `work`: see `study.driver.seats`."""

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
        work: Work | None,
    ) -> None:
        self.store, self.heartbeat, self.bucket = store, heartbeat, bucket
        self.notifier, self.live = notifier, live
        self.token, self.say = heartbeat.token, say
        self.trials = Trials(store, self.token, tracker, say)
        self.study, self.spec = self.trials.study, self.trials.spec
        self.board = Actor("board", self._open_board)
        self.seats = Seats(self.study.slug, self.token, self.spec.resources, total, self.board, work)
        self.silence = Silence(None if self.spec.resources.silence == "auto" else self.spec.resources.silence)
        self.watch = Watch(bucket)
        self.outage = Outage(self.spec.resources.patience)
        self.running: dict[int, float] = {}  # number -> monotonic time of this attempt's start
        self.spent: dict[int, float] = {}  # device-seconds of this driver's earlier attempts at a trial
        self.losses: dict[int, int] = {}  # how often in a row a trial was interrupted, without a new state
        self.alone: dict[int, int] = {}  # trials that ran out of memory, and how many epochs they had then
        self.untidy: set[int] = set()  # ended trials whose older checkpoints could not be deleted
        self.endings: dict[int, Ending] = {}
        self.signs: dict[int, Sign] = {}  # of the epochs that are under way
        self.shown: dict[int, Sign] = {}
        self.said: dict[int, float] = {}  # when a line was last printed of a trial's progress
        self.to_drop: dict[int, dict[str, Any]] = {}  # running trials that are to leave, with the request
        self.closing = Closing()
        self.best: int | None = None
        self.done_here = 0
        self.interrupted = False
        self.opened = self.announced = self.refused = self.idle = time.monotonic()

    def _open_board(self, again: bool) -> Any:
        """The board; in the place of a dead one, with what that one knew of the trials that run."""
        board = open_board(self.study.slug, self.token)
        for row in [self.trials.rows[number] for number in self.running] if again else []:
            board.have.remote(row.number, row.last.epoch if row.last else 0)
            for epoch, decision in row.verdicts.items() if not row.finishing else ():
                board.publish.remote(row.number, epoch, decision)
            if row.number in self.to_drop:
                board.drop.remote(row.number)
        return self.seats.place_again(board) if again else board

    def open(self) -> None:
        """Go on from what is stored."""
        self.trials.open()
        ended = [row for row in self.trials.rows.values() if row.finished]
        if ended:  # the driver before may have been killed between its outcome and its older checkpoints
            self._tidy(max(ended, key=lambda row: row.ended_ms or 0).number)
        self.watch.start()
        self.alone = {row.number: len(row.epochs) for row in self.trials.rows.values() if row.out_of_memory}
        self._look_at_the_best()

    def close(self) -> None:
        """Give everything back that is not the lease."""
        self.watch.ended.set()
        if not lost():
            self.seats.close()
            ray.kill(self.board.handle)

    def step(self) -> None:
        """Called at every turn of Tune's loop: obey the lease, the user and the budget."""
        clock = time.monotonic()
        if clock - self.announced > HEARTBEAT_SECONDS:
            self.announced = clock
            self.seats.heartbeat()
            self.board.tell("tell_everybody", self.closing.told if self.closing else "continue")
            self._look_at_storage(clock)
            end_the_silent(self.silence, self.board, clock, self.say)
            self.live.wake()
        self.seats.step(clock)
        desired = self.heartbeat.study.desired
        if not self.closing:
            word, reason = reason_to_close(
                lost=self.heartbeat.lost, interrupted=self.interrupted, desired=desired,
                over=self._used_up(), away=self.outage.over(clock),
            )  # fmt: skip
            if word:
                self._close(Closing(word, reason, clock))
                self.say(f"{reason}: running trials {self.closing.leaving}")
        elif self.closing.word == "pause" and desired == "stop":  # somebody changed their mind
            self._close(Closing("stop", "asked to stop", clock))
        elif self.closing.word == "lost" and clock - self.closing.since > LEAVE_SECONDS:
            raise LeaseLost(f"study {self.spec.name!r}: another driver took over, and our trials did not leave")
        if self.heartbeat.requests and self.closing.word != "lost":
            requests, self.heartbeat.requests = self.heartbeat.requests, []
            self.obey(requests)

    def _look_at_storage(self, clock: float) -> None:
        """Whether S3 is away, for this process or for the trials, and for how long; while it is, nobody is silent."""
        waiting, remarks, signs, advanced = self.board.ask("news", otherwise=({}, [], {}, set()))
        for number in advanced:
            self.losses.pop(number, None)
        self._look_inside({number: sign for number, sign in signs.items() if number in self.running}, clock)
        was_away = self.outage.reason
        for line in [*remarks, *self.outage.hear(self.watch.reason, waiting, self.running, clock)]:
            self.say(line)
        self.silence.excuse(self.running if self.outage.reason else self.outage.waiting, clock)
        if was_away and not self.outage.reason:
            for number in sorted(self.untidy):
                self._tidy(number)

    def _look_inside(self, signs: dict[int, Sign], clock: float) -> None:
        """How far trials are inside an epoch: a life sign, a line now and then, and for other terminals."""
        for number, sign in signs.items():
            self.silence.hear(number, clock)
            if clock - self.said.setdefault(number, clock) > SIGN_SAID_SECONDS:
                self.said[number] = clock
                self.say(sign_line(number, self.trials.rows[number], sign))
        self.signs |= signs
        if self.signs != self.shown and self.closing.word != "lost":
            self.store.show(self.token, self.signs)
            self.shown = dict(self.signs)

    def _tidy(self, number: int) -> None:
        """Of a trial that has ended, delete all checkpoints but those on record; later, while S3 is away."""
        self.untidy.add(number)
        if self.outage.reason:
            return
        try:
            with one_attempt():
                delete_superseded(trial_prefix(self.bucket, self.study.slug, number), self.trials.rows[number].kept)
            self.untidy.remove(number)
        except (ServiceError, OSError) as problem:
            log.warning("trial %s: older checkpoints could not be deleted: %s", number, problem)

    def _close(self, closing: Closing) -> None:
        self.closing = closing
        self.board.tell("tell_everybody", closing.told)

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
        if self.closing.word == "fail":
            raise StudyFailed(self.closing.reason)
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
        for request in (each for each in requests if each["id"] not in self.trials.obeyed):
            number = request["number"]
            if number in self.running and request["kind"] == "drop":
                if number not in self.to_drop:
                    self.to_drop[number] = request  # answered when it has left
                    self.board.tell("drop", number)
                    self.say(f"trial {number:>3}  is to be dropped: it leaves")
                continue
            outcome = self.trials.obey(request)
            reach("request.obeyed")
            answer(self.store, self.token, request["id"], outcome)
            self.say(f"trial {number:>3}  {outcome}")

    # --- what the searcher calls ---------------------------------------------------------------------------------

    def admit(self, number: int) -> bool:
        """A place for one more trial, if the cluster has one."""
        if self.outage.reason:
            return False
        granted, clock = self.seats.admit(number, need := self._need(number)), time.monotonic()
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
            self.board.ask("forget", number)
        self.running[number] = time.monotonic()
        self.silence.start(number, self.running[number])
        wanted = self.spec.resources
        order = TrialOrder(
            study=self.study.slug, number=number, token=self.token, serial=self.seats.serial, bucket=self.bucket,
            known=row.files, stored=row.last.epoch if row.last else 0, config=row.config, rungs=self.trials.rungs(row),
            cpus_per_worker=wanted.cpus_per_worker, gpus_per_worker=wanted.gpus_per_worker, patience=wanted.patience,
        )  # fmt: skip
        self.seats.begin(order)
        return order.settings()

    def result(self, number: int, result: dict[str, Any]) -> None:
        """What a trial says: commit its epochs, judge it at a rung; or that it leaves."""
        if "ending" in result:
            self.endings[number] = Ending.model_validate_json(result["ending"])
            if "worn" in result:  # by its seat, not by Tune's process that has lost the board
                self.seats.ends(number, worn=bool(result["worn"]))
        if "report" not in result or self.closing.word == "lost":
            return
        self.silence.hear(number, time.monotonic())
        self.signs.pop(number, None)
        self.said[number] = time.monotonic()
        report = Report.model_validate_json(result["report"])
        if report.records:
            self.losses.pop(number, None)
        row = self.trials.report(number, report, device_seconds=self._seconds(number))
        self.board.tell("have", number, row.last.epoch if row.last else 0)
        if report.epoch in self.trials.rungs(row):
            self.board.tell("publish", number, report.epoch, self.trials.judge(number, report.epoch))
            reach("verdict.published")

    def end(self, number: int, error: bool) -> bool:
        """The trial's process is gone; store how it ended. Whether it is to go on now: it was interrupted."""
        seconds = self.spent[number] = self._seconds(number)
        del self.running[number]
        self.silence.end(number)
        self.signs.pop(number, None)
        self.said.pop(number, None)
        ending = self.endings.pop(number, None)
        self.seats.end(number, ending, goes_on=not self.closing)
        if self.closing.word == "lost":
            return False
        reach("outcome.received")
        if ending is None:  # without a word: its process died, or it simply returned
            ending = Ending(outcome="interrupted", lost=True) if error or self.closing else Ending.failed("bug", "")
        if number in self.to_drop:
            self.trials.leave(number, "dropped", device_seconds=seconds)
            self.obey([self.to_drop.pop(number)])
            return False
        ending = self._bounded(number, ending)
        if left := self._set_aside(number, ending):
            self.trials.leave(number, left, device_seconds=seconds)
            return not self.closing
        row = self.trials.end(number, ending, self.closing, device_seconds=seconds)
        self._tidy(number)
        reach("outcome.tidied")
        project_outcome(self.trials.tracker, self.study, row)
        if row.state == "failed":
            last = (row.stop_reason or "no message").splitlines()[-1]
            self.say(f"trial {number:>3}  failed ({row.failure_kind}): {shorten(last, 200, placeholder=' ...')}")
        self._say_progress(number)
        return False

    def _bounded(self, number: int, ending: Ending) -> Ending:
        """The ending, or a bug where the trial has lost its process too often while nothing else was wrong. One that
        lacks a service so often that the others and we have pauses the study: it is no fault of the trial."""
        if ending.outcome != "interrupted" or self.closing or self.outage.reason:
            return ending
        lost = self.losses[number] = self.losses.get(number, 0) + 1
        if lost > LOSSES and not ending.lost:
            self._close(Closing("pause", f"trial {number} cannot go on: {ending.message}", time.monotonic()))
        if lost <= LOSSES or not ending.lost:
            return ending
        why = f"its process was lost {lost} times in a row without a new state, while nothing else was away"
        return Ending.failed("bug", f"{ending.message or ''}\n{why}".strip())

    def _set_aside(self, number: int, ending: Ending) -> str:
        """What the attempt is called of a trial that goes on later; empty where the trial has ended with it."""
        if ending.outcome == "paused":
            if not self.closing:  # it left though nobody asked: the board is gone, and the others will leave too
                self.closing = Closing("pause", "the trials lost their driver's board", time.monotonic())
            return "paused"
        if ending.outcome == "interrupted":
            if not self.closing:
                self.say(interrupted_line(number, ending, self.trials.rows[number]))
            return "interrupted"
        epochs = len(self.trials.rows[number].epochs)  # who got further may have met somebody else's need for memory
        if ending.failure_kind == "out-of-memory" and self.alone.get(number, -1) < epochs:
            self.alone[number] = epochs
            self.say(f"trial {number:>3}  ran out of memory; it is tried once more, with its nodes to itself")
            return "out-of-memory"
        chosen = any(path.partition(".")[0] in ("model", "data") for path in self.spec.search)
        if ending.of_every_trial and not chosen and not self.closing:
            self._close(Closing("fail", f"no trial can run: {ending.message}", time.monotonic()))
            return "interrupted"
        return ""

    def _need(self, number: int) -> dict[str, float]:
        """What a trial holds of the cluster; one that ran out of memory has its nodes to itself."""
        wanted, alone = self.spec.resources, number in self.alone
        return whole_nodes(wanted.of_worker(), wanted.workers, node_capacities()) if alone else wanted.of_trial()

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
        best = best_trial(list(self.trials.rows.values()), self.trials.goal)
        self.best = best.number if best else None

    def _seconds(self, number: int) -> float:
        """Device-seconds of this driver's attempts so far."""
        wanted = self.spec.resources
        now = (time.monotonic() - self.running[number]) * wanted.workers * (wanted.gpus_per_worker or 1.0)
        return self.spent.get(number, 0.0) + now
