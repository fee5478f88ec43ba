"""The trials of one driver: what begins, is reported, judged and ends becomes stored facts. Knows no Ray.

Order of every step: the study store first, then its projections, Optuna's tables and MLflow. What a crash cuts off
after the first write is made up from the store by the next driver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from infra.failpoint import reach
from infra.tracking.runs import Tracker
from study.driver.closing import Closing, ended
from study.driver.messages import epoch_line
from study.search import knowledge
from study.search.prior import earlier_studies, resolve
from study.search.projection import Projection
from study.search.proposals import configured, given, proposer_of, remembered
from study.search.stopping import rungs, stands_still, to_finish, verdict
from study.spec.dimension import shown
from study.spec.outside import with_drivers
from study.store.requests import IN_LINE, to_run_again
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore
from study.tracking import mark_best, project_best, project_epochs, project_outcome, project_study, project_trial
from trainers.schema.records import Ending, Report


def begin_search(store: StudyStore, token: int, fitting: int) -> None:
    """Once in a study's life: its lag, where `fitting` trials fit at once now, and the trials that it begins with."""
    study = store.load()
    if study.lag is None:
        store.set_study(token, lag=knowledge.auto_lag(fitting) if study.spec.lag == "auto" else study.spec.lag)
    if study.starts is None:
        earlier = resolve(study.spec, earlier_studies(store.url, study.spec))
        starts = given(study.spec, study.spec.dimensions(), earlier.starts)
        told = [each._asdict() for each in earlier.observed]
        begins = [{"origin": start.origin, "values": start.values} for start in starts]
        store.set_study(token, starts=[*begins, *told])


class Upcoming(NamedTuple):
    """The trial that starts next; `awaited`: the trial that has to end before, None if it may start now."""

    number: int
    awaited: int | None = None


class Trials:
    """`rows` are the trials as stored: nobody else writes them while the lease is ours, so they are read once."""

    def __init__(self, store: StudyStore, token: int, tracker: Tracker, say: Callable[[str], None]) -> None:
        self.store, self.token, self.tracker, self.say = store, token, tracker, say
        self.study = store.load()
        assert self.study.lag is not None, "it is stored before the first trial"
        self.proposer = proposer_of(self.study)
        self.spec, self.goal, self.lag = self.study.spec, self.proposer.goal, self.study.lag
        self.base, self.dimensions = self.spec.base(self.goal), self.proposer.dimensions
        self.projection = Projection(store, self.proposer)
        self.rows: dict[int, TrialRow] = {}
        self.line: list[int] = []  # trials that are to be run again, all that ever were, in the order of asking
        self.obeyed: set[int] = set()  # requests, which a beat may have read just before they were answered

    def open(self) -> None:
        """Read what is stored, and project it."""
        stored = {row.number: row for row in self.store.trials()}
        self.rows = remembered(self.proposer, stored, self.lag)
        self.line = to_run_again(self.store)
        self.projection.catch_up(self.rows.values())
        project_study(self.tracker, self.study)
        for row in self.rows.values():
            project_trial(self.tracker, self.study, row)
            project_epochs(self.tracker, self.study, row.number, row.epochs)
            if row.finished:
                project_outcome(self.tracker, self.study, row)
        self.project_best()

    # --- who comes next ------------------------------------------------------------------------------------------

    def upcoming(self, study: StudyRow) -> Upcoming | None:
        """The next trial of a study with the budget of `study`; None if there is none any more."""
        number = len(self.rows)
        if self.short_of(study):
            if (awaited := knowledge.awaited(self.rows, number, self.lag)) is not None:
                return Upcoming(number, awaited)
            if not self.stands_still(study):
                return Upcoming(number)
        wanted = self.spec.scheduler.finish
        if not wanted:
            return None
        if (running := next((row.number for row in self.rows.values() if not row.finished), None)) is not None:
            return Upcoming(running, running)
        best = to_finish(list(self.rows.values()), self.goal, wanted)
        return next((Upcoming(row.number) for row in best if not row.finishing), None)

    def stands_still(self, study: StudyRow) -> str:
        """Why the next trial is not to be started though the budget is not used up (`budget.patience`)."""
        number, budget = len(self.rows), study.spec.budget
        if budget.patience is None or knowledge.awaited(self.rows, number, self.lag) is not None:
            return ""
        return stands_still(budget, study.extended_at, knowledge.known(self.rows, number, self.lag), self.goal)

    def short_of(self, study: StudyRow) -> bool:
        """Whether there are fewer trials than its budget has."""
        return len(self.rows) < knowledge.wanted(self.rows, study.spec.budget.trials, self.line)

    def unfinished(self) -> list[int]:
        """Trials that an earlier driver left."""
        return [row.number for row in self.rows.values() if not row.finished]

    def ended(self, number: int) -> bool:
        """Whether a trial's outcome is final."""
        return self.rows[number].finished

    def project_best(self, newest: int | None = None) -> None:
        """On the parent run and in the trial's name; see `study.tracking.project_best`."""
        rows = list(self.rows.values())
        project_best(self.tracker, self.study, rows, newest=newest)
        mark_best(self.tracker, self.study, rows, newest=newest)

    def counted(self) -> list[TrialRow]:
        """Those that were not taken out."""
        return [row for row in self.rows.values() if row.state != "dropped"]

    def rungs(self, row: TrialRow) -> tuple[int, ...]:
        """Where a trial is judged: its own length may be searched, too. One that is finished after all is not."""
        return () if row.finishing else rungs(self.spec.scheduler, row.config["train"]["epochs"])

    def _keep(self, row: TrialRow) -> TrialRow:
        self.rows[row.number] = row
        return row

    def begin(self, number: int) -> TrialRow:
        """A trial starts, or goes on in another attempt."""
        if number not in self.rows:
            row = self._start(number)
        else:
            if self.rows[number].finished:
                self.store.reopen_trial(self.token, number)
                reach("trial.reopened")
            row = self._keep(self.store.attempt_trial(self.token, number))
            if row.finishing:
                self.projection.rebuild(self.rows.values())
        reach("trial.stored")
        self.projection.follow([row])
        reach("trial.projected")
        project_trial(self.tracker, self.study, row)
        word = "is finished" if row.finishing else "continues" if row.epochs else "starts"
        sampled = ", ".join(f"{path.rpartition('.')[2]} {shown(path, value)}" for path, value in row.params.items())
        again = f"  (again trial {row.rerun_of})" if row.rerun_of is not None else ""
        self.say(f"trial {number:>3}  {word}   {sampled}{again}")
        return row

    def _start(self, number: int) -> TrialRow:
        rerun_of = knowledge.repeats(self.rows, self.line)
        proposal = self.proposer.propose(self.rows, number, self.lag, rerun_of=rerun_of)
        reach("trial.proposed")
        config = configured(self.base, proposal.params, self.dimensions)
        return self._keep(self.store.start_trial(self.token, proposal, config))

    def report(self, number: int, report: Report, *, device_seconds: float) -> TrialRow:
        """Commit the epochs that are new, and tell MLflow."""
        reach("report.received")
        before = self.rows[number]
        report = report.model_copy(update={"provenance": with_drivers(self.spec, report.provenance)})
        row = self._keep(self.store.record(self.token, before, report, device_seconds=device_seconds))
        reach("report.stored")
        had = {record.epoch for record in before.epochs}
        fresh = [record for record in row.epochs if record.epoch not in had]
        for record in fresh:
            self.say(epoch_line(number, record, row.config["train"]["epochs"], self.spec.goal.calibrations))
        project_epochs(self.tracker, self.study, number, fresh)
        return row

    def judge(self, number: int, epoch: int) -> str:
        """The verdict on a trial at a rung, stored."""
        row = self.rows[number]
        known = knowledge.known(self.rows, number, self.lag)
        decision, reason = verdict(self.spec.scheduler, row, known, epoch=epoch, goal=self.goal)
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
        self.projection.follow([self._keep(finished)])
        reach("outcome.told")
        return finished

    def settle(self, closing: Closing) -> None:
        """The study ends: trials that an earlier driver left, and that are not to go on, have ended, too."""
        for row in [row for row in self.rows.values() if not row.finished]:
            state, why = row.cut_off(closing.of_trials)
            finished = self._keep(self.store.finish_trial(self.token, row.number, state, stop_reason=why))
            self.projection.follow([finished])
            project_outcome(self.tracker, self.study, finished)
        self.project_best()

    def obey(self, request: Mapping[str, Any]) -> str:
        """Put a trial in line again, or take one out that does not run, once; what was done."""
        number = request["number"]
        self.obeyed.add(request["id"])
        if number not in self.rows:
            return "there is no such trial"
        if request["kind"] == "rerun":
            self.line.append(number)
            return IN_LINE
        if self.rows[number].state != "dropped":
            reason = f"dropped: {request['note']}" if request["note"] else "dropped"
            at = len(self.rows)
            row = self._keep(self.store.finish_trial(self.token, number, "dropped", stop_reason=reason, dropped_at=at))
            reach("drop.stored")
            self.projection.rebuild(self.rows.values())
            reach("drop.projected")
            project_outcome(self.tracker, self.study, row)
            self.project_best()
        return "dropped"
