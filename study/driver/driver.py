"""A driver: one process that owns a study's lease and turns what happens into stored facts.

Order of every step: the study store first, then Optuna, then the board and MLflow. What a crash cuts off after the
first write is made up from the store by the next driver.
"""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping
from textwrap import shorten
from typing import Any

import ray
from pydantic import ValidationError

from infra.errors import ServiceError
from infra.failpoint import reach
from infra.tracking.runs import Tracker
from study.artifacts.checkpoints import delete_superseded, trial_prefix
from study.driver.admission import open_admission
from study.driver.board import Silence, end_the_silent, open_board
from study.driver.heartbeat import HEARTBEAT_SECONDS, Heartbeat
from study.driver.messages import Notifier, epoch_line, message_of, study_line, waiting_line
from study.driver.trial import TrialOrder
from study.errors import LeaseLost
from study.report.live import LiveReport
from study.results.ranking import best_trial, score
from study.search.optuna_book import OptunaBook
from study.search.stopping import plateau, rungs, stagnation, used_up, verdict
from study.spec.dimension import apply_params, shown
from study.spec.outside import with_drivers
from study.store.requests import answer
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore
from study.tracking import project_best, project_epochs, project_outcome, project_study, project_trial
from trainers.trial_config import TrialConfig

log = logging.getLogger("agft")
LEAVE_SECONDS = 45.0
WAIT_SECONDS, WAIT_SAID_SECONDS = 60.0, 600.0  # until a wait for the cluster is mentioned, and mentioned again


class Driver:
    """State of one driver. `say(text)` prints one line of progress.

    `rows` are the trials as stored: nobody else writes them while the lease is ours, so they are read once.
    """

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
        self.store, self.heartbeat, self.tracker, self.bucket = store, heartbeat, tracker, bucket
        self.notifier, self.live = notifier, live
        self.token, self.say, self.total = heartbeat.token, say, total
        self.study: StudyRow = store.load()
        self.spec = self.study.spec
        assert self.study.baseline is not None, "the unmodified model is measured before the first trial"
        self.goal = self.spec.goal.resolve(self.study.baseline)
        self.base = self.spec.base(self.goal)
        self.dimensions = self.spec.dimensions()
        self.book = OptunaBook(store, self.spec, self.goal.at_least)
        self.board = open_board(self.study.slug, self.token)
        self.admission = open_admission()
        self.identity = f"{self.study.slug}/{self.token}"
        silence = self.spec.resources.silence
        self.silence = Silence(None if silence == "auto" else silence)
        self.rows: dict[int, TrialRow] = {}
        self.best: TrialRow | None = None
        self._stagnant = ""
        self.running: dict[int, float] = {}  # number -> monotonic time of this attempt's start
        self.outcomes: dict[int, dict[str, Any]] = {}
        self.to_drop: dict[int, dict[str, Any]] = {}  # running trials that are to leave, with the request
        self.closing_word = ""  # why no new trials start: pause, stop, budget, lost
        self.closing_reason = ""
        self.closing_since = 0.0
        self.done_here = 0
        self.interrupted = False
        self.opened = self.announced = self.refused = time.monotonic()

    # --- life ----------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Project what is stored, and bring Optuna in line."""
        self.rows = {row.number: row for row in self.store.trials()}
        self.book.tidy()
        if not self.book.mirrors():
            self.book.rebuild(self.token)
        self.book.enqueue_warm_starts()
        project_study(self.tracker, self.study)
        for trial in self.rows.values():
            project_trial(self.tracker, self.study, trial)
            project_epochs(self.tracker, self.study, trial.number, trial.epochs)
            if trial.finished:
                project_outcome(self.tracker, self.study, trial)
        project_best(self.tracker, self.study, list(self.rows.values()))
        self.best = best_trial(list(self.rows.values()), self.goal)
        self._stagnant = self._stagnation(list(self.rows.values()))

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
            held = {f"{self.identity}/{number}": self.need() for number in self.running}
            self.admission.heartbeat.remote(self.identity, held, self.spec.resources.workers)
            end_the_silent(self.silence, self.board, clock, self.say)
            self.live.wake()
        if not self.closing_word:
            word, reason = self._reason_to_close()
            if word:
                self.closing_word, self.closing_reason, self.closing_since = word, reason, clock
                self.say(f"{reason}: running trials end at their next report")
                self.board.tell_everybody.remote("stop" if word in ("stop", "budget") else "pause")
        elif self.closing_word == "pause" and self.heartbeat.study.desired == "stop":  # somebody changed their mind
            self.closing_word, self.closing_reason = "stop", "asked to stop"
            self.board.tell_everybody.remote("stop")
        elif self.closing_word == "lost" and clock - self.closing_since > LEAVE_SECONDS:
            raise LeaseLost(f"study {self.spec.name!r}: another driver took over, and our trials did not leave")
        if self.heartbeat.requests and self.closing_word != "lost":
            requests, self.heartbeat.requests = self.heartbeat.requests, []
            self.obey(requests)

    def _reason_to_close(self) -> tuple[str, str]:
        if self.heartbeat.lost:
            return "lost", "another driver has taken over this study"
        if self.interrupted:
            return "pause", "interrupted"
        desired = self.heartbeat.study.desired
        if desired in ("pause", "stop"):
            return desired, f"asked to {desired}"
        over = self._over_budget() or self._stagnant
        return ("budget", over) if over else ("", "")

    def _over_budget(self) -> str:
        clock = time.monotonic()
        return used_up(
            self.heartbeat.study.spec.budget, self.rows.values(),
            driven_seconds=self.study.driven_seconds + clock - self.opened,
            running_seconds=sum(self._seconds(number) for number in self.running),
            token=self.token, counts_gpus=self.spec.resources.gpus_per_worker > 0,
        )  # fmt: skip

    def _stagnation(self, trials: list[TrialRow]) -> str:
        """Why the study ends though its budget is not used up; an extension gives it as much patience again."""
        budget, finished = self.heartbeat.study.spec.budget, sum(row.finished for row in trials)
        if budget.patience is None or finished - self.heartbeat.study.extended_at < budget.patience:
            return ""
        return stagnation(trials, self.goal, budget) or ""

    def closing(self) -> bool:
        """Whether no new trial may start. Tune may ask this for minutes without giving us another turn."""
        self.step()
        return bool(self.closing_word)

    def budget(self) -> int:
        """How many trials the study is to have, as of now: it can be extended while it runs."""
        return self.heartbeat.study.spec.budget.trials

    def dropped(self) -> int:
        """How many trials were taken out; others take their place."""
        return sum(row.state == "dropped" for row in self.rows.values())

    def settle(self) -> None:
        """The study ends: trials that an earlier driver left, and that are not to go on, have ended, too."""
        for row in [row for row in self.rows.values() if not row.finished]:
            state = "complete" if row.whole else "pruned"
            why = None if row.whole else self._end_of_study()
            ended = self._keep(self.store.finish_trial(self.token, row.number, state, stop_reason=why))
            self.book.tell(ended)
            project_outcome(self.tracker, self.study, ended)
        project_best(self.tracker, self.study, list(self.rows.values()))

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
            if number not in self.rows:
                outcome = "there is no such trial"
            elif request["kind"] == "rerun":
                self.book.enqueue_again(number, request["id"])
                outcome = "in line again"
            else:
                self._drop(number, request["note"])
                outcome = "dropped"
            reach("request.obeyed")
            answer(self.store, self.token, request["id"], outcome)
            self.say(f"trial {number:>3}  {outcome}")

    def _drop(self, number: int, note: str) -> None:
        if self.rows[number].state == "dropped":
            return
        reason = f"dropped: {note}" if note else "dropped"
        self._keep(self.store.finish_trial(self.token, number, "dropped", stop_reason=reason))
        self.book.rebuild(self.token)
        project_outcome(self.tracker, self.study, self.rows[number])
        project_best(self.tracker, self.study, list(self.rows.values()))

    # --- what the searcher calls ---------------------------------------------------------------------------------

    def need(self) -> dict[str, float]:
        """Resources of a whole trial."""
        wanted = self.spec.resources
        need = {"CPU": wanted.workers * wanted.cpus_per_worker, "GPU": wanted.workers * wanted.gpus_per_worker}
        return {name: amount for name, amount in need.items() if amount}

    def admit(self, number: int) -> bool:
        """A slot for one more trial, if the cluster has one."""
        wanted = self.spec.resources
        asked = self.admission.ask.remote(
            self.identity, f"{self.identity}/{number}", self.need(), self.total, wanted.priority, wanted.workers
        )
        granted, clock = bool(ray.get(asked)), time.monotonic()
        if granted or self.running:
            self.refused = clock
        elif clock - self.refused > WAIT_SECONDS:
            self.refused = clock + WAIT_SAID_SECONDS
            self.say(waiting_line(number, self.need(), ray.cluster_resources(), ray.available_resources()))
        return granted

    def begin(self, number: int, params: dict[str, Any]) -> dict[str, Any]:
        """Store the start of a trial, or of another attempt at it; returns Tune's settings."""
        reach("trial.proposed")
        config = apply_params(self.base, params, self.dimensions)
        # An impossible one is refused where the trial starts, and fails like any other: raised here, it would come
        # back as the first trial of every driver.
        with contextlib.suppress(ValidationError):
            config = TrialConfig.model_validate(config).model_dump(mode="json")
        rerun_of = self.book.rerun_of(number)
        row = self._keep(self.store.start_trial(self.token, number, params, config, rerun_of=rerun_of))
        reach("trial.stored")
        self.running[number] = time.monotonic()
        self.silence.start(number, self.running[number])
        project_trial(self.tracker, self.study, row)
        sampled = ", ".join(f"{path.rpartition('.')[2]} {shown(path, value)}" for path, value in params.items())
        again = f"  (again trial {rerun_of})" if rerun_of is not None else ""
        self.say(f"trial {number:>3}  {'continues' if row.epochs else 'starts'}   {sampled}{again}")
        wanted = self.spec.resources
        return TrialOrder(
            study=self.study.slug, number=number, token=self.token, bucket=self.bucket,
            known=row.kept,
            config=config, rungs=self._rungs(config), workers=wanted.workers,
            cpus_per_worker=wanted.cpus_per_worker, gpus_per_worker=wanted.gpus_per_worker,
        ).settings()  # fmt: skip

    def _keep(self, row: TrialRow) -> TrialRow:
        self.rows[row.number] = row
        return row

    def result(self, number: int, result: dict[str, Any]) -> None:
        """A report: commit its epochs, tell Optuna, judge it at a rung, show it."""
        if "outcome" in result:
            self.outcomes[number] = json.loads(result["outcome"])
        if "history" not in result or self.closing_word == "lost":
            return
        reach("report.received")
        self.silence.report(number, time.monotonic())
        files = json.loads(result["files"])
        fresh, row = self.store.record(
            self.token, number, json.loads(result["history"]), latest=files.get("latest"), best=files.get("best"),
            device_seconds=self._seconds(number), provenance=with_drivers(self.spec, json.loads(result["provenance"])),
        )  # fmt: skip
        self._keep(row)
        reach("report.stored")
        for record in fresh:
            self.book.observe(number, record["epoch"], score(record, self.goal))
            self.say(epoch_line(number, record, row.config["train"]["epochs"]))
        reach("report.observed")
        project_epochs(self.tracker, self.study, number, fresh)
        epoch = int(result["epoch"])
        if epoch in self._rungs(row.config):
            self._judge(number, epoch)

    def _rungs(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Where this trial is judged: its own length may be searched, too."""
        return rungs(self.spec.scheduler, config["train"]["epochs"])

    def _judge(self, number: int, epoch: int) -> None:
        everyone = [row for row in self.rows.values() if row.state != "dropped"]
        decision, reason = verdict(self.spec.scheduler, self.rows[number], everyone, epoch=epoch, goal=self.goal)
        decision = self.store.decide(self.token, number, epoch, decision, reason)
        self.rows[number].verdicts[epoch] = decision
        reach("verdict.stored")
        self.board.publish.remote(number, epoch, decision)
        reach("verdict.published")
        if decision == "stop":
            self.say(f"trial {number:>3}  is stopped early: {reason}")

    def end(self, number: int, error: bool) -> None:
        """The trial's process is gone; store how it ended."""
        seconds = self._seconds(number)
        del self.running[number]
        self.silence.end(number)
        self.admission.give_back.remote(self.identity, f"{self.identity}/{number}")
        if self.closing_word == "lost":
            return
        reach("outcome.received")
        outcome = self.outcomes.pop(number, None)
        word = outcome["outcome"] if outcome else ("interrupted" if self.closing_word else "failed")
        if number in self.to_drop:
            self._keep(self.store.end_attempt(self.token, number, "dropped", device_seconds=seconds))
            self.obey([self.to_drop.pop(number)])
            return
        if word in ("paused", "interrupted"):
            self._keep(self.store.end_attempt(self.token, number, word, device_seconds=seconds))
            if not self.closing_word:  # it left though nobody asked: the board is gone, and the others will leave too
                self.closing_word, self.closing_since = "pause", time.monotonic()
                self.closing_reason = "the trials lost their driver's board"
            return
        state = {"finished": "complete", "stopped": "pruned"}.get(word, "failed")
        stored = self.rows[number]
        if state == "pruned" and stored.last and plateau(
            self.spec.scheduler, stored, epoch=stored.last["epoch"], goal=self.goal
        ):  # fmt: skip
            state = "complete"  # it stood still: more epochs would not change what it is judged by
        lost = "pre-empted" if error else "bug"  # without a word: its process died, or it simply returned
        kind = ((outcome or {}).get("failure_kind") or lost) if state == "failed" else None
        row = self._keep(
            self.store.finish_trial(
                self.token, number, state, stop_reason=self._why(number, state, outcome), failure_kind=kind,
                device_seconds=seconds,
            )
        )  # fmt: skip
        reach("outcome.stored")
        self.book.tell(row)
        reach("outcome.told")
        try:
            delete_superseded(trial_prefix(self.bucket, self.study.slug, number), row.kept)
        except (ServiceError, OSError) as problem:
            log.warning("trial %s: older checkpoints could not be deleted: %s", number, problem)
        reach("outcome.tidied")
        project_outcome(self.tracker, self.study, row)
        if state == "failed":
            last = (row.stop_reason or "no message").splitlines()[-1]
            self.say(f"trial {number:>3}  failed ({kind}): {shorten(last, 200, placeholder=' ...')}")
        self._say_progress(number)

    def _say_progress(self, newest: int) -> None:
        """How far the study is now that trial `newest` has ended, and when it may end at this driver's pace so far."""
        trials = list(self.rows.values())
        project_best(self.tracker, self.study, trials, newest=newest)
        best = best_trial(trials, self.goal)
        if best is not None and (self.best is None or best.number != self.best.number):
            self.notifier.send("new_best", message_of(self.study, "running", trials))
        self.best = best
        self._stagnant = self._stagnation(trials)
        counted = [row for row in trials if row.state != "dropped"]
        self.done_here += 1
        pruned = sum(row.state == "pruned" for row in counted)
        pace = (time.monotonic() - self.opened) / self.done_here
        again = sum(row.rerun_of is not None for row in counted)
        self.say(study_line(sum(row.finished for row in counted), self.budget() + again, pruned, pace))

    def _why(self, number: int, state: str, outcome: dict[str, Any] | None) -> str | None:
        if state == "failed":
            return (outcome or {}).get("message") or "the trial's process ended without a word"
        stops = [epoch for epoch, decision in self.rows[number].verdicts.items() if decision == "stop"]
        if state == "complete":
            return f"no improvement up to epoch {max(stops)}" if stops else None
        if stops:
            return f"{self.spec.scheduler.name} at epoch {max(stops)}"
        return self._end_of_study()

    def _end_of_study(self) -> str:
        return f"study: {self.closing_reason if self.closing_word == 'budget' else self.closing_word or 'stopped'}"

    def _seconds(self, number: int) -> float:
        """Device-seconds of this attempt so far."""
        return (time.monotonic() - self.running[number]) * self._devices()

    def _devices(self) -> float:
        wanted = self.spec.resources
        return wanted.workers * (wanted.gpus_per_worker or 1.0)
