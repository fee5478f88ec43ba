"""The trials of one driver: what begins, is reported, judged and ends becomes stored facts. Knows no Ray.

Order of every step: the study store first, then Optuna, then MLflow. What a crash cuts off after the first write is
made up from the store by the next driver.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

from pydantic import ValidationError

from infra.failpoint import reach
from infra.tracking.runs import Tracker
from study.driver.closing import Closing, ended, left_over
from study.driver.messages import epoch_line
from study.results.ranking import score
from study.search.optuna_book import OptunaBook
from study.search.stopping import rungs, verdict
from study.spec.dimension import apply_params, shown
from study.spec.outside import with_drivers
from study.store.rows import TrialRow
from study.store.store import StudyStore
from study.tracking import project_best, project_epochs, project_outcome, project_study, project_trial
from trainers.schema.records import Ending, Report
from trainers.trial_config import TrialConfig


class Trials:
    """`rows` are the trials as stored: nobody else writes them while the lease is ours, so they are read once."""

    def __init__(self, store: StudyStore, token: int, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.store, self.token, self.tracker, self.say = store, token, tracker, say
        self.study = store.load()
        assert self.study.goal is not None, "the unmodified model is measured before the first trial"
        self.spec, self.goal = self.study.spec, self.study.goal
        self.base, self.dimensions = self.spec.base(self.goal), self.spec.dimensions()
        self.book = OptunaBook(store, self.spec, self.goal.at_least)
        self.rows: dict[int, TrialRow] = {}

    def open(self) -> None:
        """Bring Optuna in line with what is stored, and project it."""
        self.rows = {row.number: row for row in self.store.trials()}
        self.book.tidy()
        if not self.book.mirrors():
            self.book.rebuild(self.token)
        self.book.enqueue_warm_starts()
        project_study(self.tracker, self.study)
        for row in self.rows.values():
            project_trial(self.tracker, self.study, row)
            project_epochs(self.tracker, self.study, row.number, row.epochs)
            if row.finished:
                project_outcome(self.tracker, self.study, row)
        self.project_best()

    def project_best(self, newest: int | None = None) -> None:
        """On the parent run; see `study.tracking.project_best`."""
        project_best(self.tracker, self.study, list(self.rows.values()), newest=newest)

    def dropped(self) -> int:
        """How many were taken out; others take their place."""
        return sum(row.state == "dropped" for row in self.rows.values())

    def counted(self) -> list[TrialRow]:
        """Those that were not."""
        return [row for row in self.rows.values() if row.state != "dropped"]

    def rungs(self, config: Mapping[str, Any]) -> tuple[int, ...]:
        """Where a trial is judged: its own length may be searched, too."""
        return rungs(self.spec.scheduler, config["train"]["epochs"])

    def _keep(self, row: TrialRow) -> TrialRow:
        self.rows[row.number] = row
        return row

    def begin(self, number: int, params: dict[str, Any]) -> TrialRow:
        """A trial starts, or goes on in another attempt."""
        reach("trial.proposed")
        config = apply_params(self.base, params, self.dimensions)
        # An impossible one is refused where the trial starts, and fails like any other: raised here, it would come
        # back as the first trial of every driver.
        with contextlib.suppress(ValidationError):
            config = TrialConfig.model_validate(config).model_dump(mode="json")
        rerun_of = self.book.rerun_of(number)
        row = self._keep(self.store.start_trial(self.token, number, params, config, rerun_of=rerun_of))
        reach("trial.stored")
        project_trial(self.tracker, self.study, row)
        sampled = ", ".join(f"{path.rpartition('.')[2]} {shown(path, value)}" for path, value in params.items())
        again = f"  (again trial {rerun_of})" if rerun_of is not None else ""
        self.say(f"trial {number:>3}  {'continues' if row.epochs else 'starts'}   {sampled}{again}")
        return row

    def report(self, number: int, report: Report, *, device_seconds: float) -> TrialRow:
        """Commit the epochs that are new, and tell Optuna and MLflow."""
        reach("report.received")
        before = self.rows[number]
        report = report.model_copy(update={"provenance": with_drivers(self.spec, report.provenance)})
        row = self._keep(self.store.record(self.token, before, report, device_seconds=device_seconds))
        reach("report.stored")
        had = {record.epoch for record in before.epochs}
        fresh = [record for record in row.epochs if record.epoch not in had]
        for record in fresh:
            self.book.observe(number, record.epoch, score(record, self.goal))
            self.say(epoch_line(number, record, row.config["train"]["epochs"]))
        reach("report.observed")
        project_epochs(self.tracker, self.study, number, fresh)
        return row

    def judge(self, number: int, epoch: int) -> str:
        """The verdict on a trial at a rung, stored."""
        row = self.rows[number]
        decision, reason = verdict(self.spec.scheduler, row, self.counted(), epoch=epoch, goal=self.goal)
        decision = row.verdicts[epoch] = self.store.decide(self.token, number, epoch, decision, reason)
        reach("verdict.stored")
        if decision == "stop":
            self.say(f"trial {number:>3}  is stopped early: {reason}")
        return decision

    def leave(self, number: int, outcome: str, *, device_seconds: float) -> None:
        """This driver is done with a trial that has not ended."""
        self._keep(self.store.end_attempt(self.token, number, outcome, device_seconds=device_seconds))

    def end(self, number: int, ending: Ending, closing: Closing, *, device_seconds: float) -> TrialRow:
        """The trial has ended for good."""
        state, why = ended(self.rows[number], ending, self.spec.scheduler, self.goal, closing)
        kind = ending.failure_kind if state == "failed" else None
        finished = self.store.finish_trial(
            self.token, number, state, stop_reason=why, failure_kind=kind, device_seconds=device_seconds
        )
        reach("outcome.stored")
        self.book.tell(self._keep(finished))
        reach("outcome.told")
        return finished

    def settle(self, closing: Closing) -> None:
        """The study ends: trials that an earlier driver left, and that are not to go on, have ended, too."""
        for row in [row for row in self.rows.values() if not row.finished]:
            state, why = left_over(row, closing)
            finished = self._keep(self.store.finish_trial(self.token, row.number, state, stop_reason=why))
            self.book.tell(finished)
            project_outcome(self.tracker, self.study, finished)
        self.project_best()

    def obey(self, request: Mapping[str, Any]) -> str:
        """Put a trial in line again, or take one out that does not run; what was done."""
        number = request["number"]
        if number not in self.rows:
            return "there is no such trial"
        if request["kind"] == "rerun":
            self.book.enqueue_again(number, request["id"])
            return "in line again"
        if self.rows[number].state != "dropped":
            reason = f"dropped: {request['note']}" if request["note"] else "dropped"
            row = self._keep(self.store.finish_trial(self.token, number, "dropped", stop_reason=reason))
            self.book.rebuild(self.token)
            project_outcome(self.tracker, self.study, row)
            self.project_best()
        return "dropped"
