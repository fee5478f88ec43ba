"""A driver's book-keeping on a real database, without Ray, and the rules of its end as plain functions."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from ray.train.v2.api.exceptions import ControllerError

from infra.errors import ServiceError
from study.driver.closing import Closing, ended, final_state, reason_to_close
from study.driver.driver import LOSSES, Driver
from study.driver.trial import ending_of
from study.driver.trials import Trials
from study.search.knowledge import as_known
from study.search.stopping import stands_still
from study.spec.config import SchedulerConfig
from study.store.requests import ask, pending
from study.store.rows import TrialRow
from study.store.store import StudyStore
from tests.support.epochs import epoch_record, weights
from tests.support.hand import Hand
from tests.support.light import create_measured, light_study
from trainers.schema.records import Ending, Report
from trainers.schema.training import Goal

RUNNING, GOAL, ASHA = Closing(), Goal(), SchedulerConfig()


@pytest.fixture
def trials(tmp_path: Path) -> Trials:
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", "kept")
    scheduler = {"grace_fraction": 0.3, "reduction_factor": 2, "min_trials": 1}
    create_measured(store, light_study("kept", lag=0, scheduler=scheduler))
    return driver_of(store)


def driver_of(store: StudyStore) -> Trials:
    """The next driver of the study, once the last one is gone."""
    return Hand(store, slots=1, owner="elsewhere|1|1.00|m.b.1", seconds=0.0).trials


def run(trials: Trials, number: int, *robust: float) -> TrialRow:
    """Start or go on with a trial, and report these epochs."""
    row = trials.begin(number)
    for value in robust:
        epoch = len(row.epochs) + 1
        latest = weights(f"s3://b/{number}/{epoch}")
        report = Report(epoch=epoch, records=(epoch_record(epoch, value, 0.7),), latest=latest)
        row = trials.report(number, report, device_seconds=epoch * 1.0)
        assert row == trials.store.trial(number), "the driver's memory is what is stored"
    return row


def states(trials: Trials) -> list[str]:
    study = optuna.load_study(study_name=trials.store.load().optuna_name, storage=trials.store.url)
    return [trial.state.name for trial in study.get_trials()]


def test_what_a_trial_goes_through_is_in_the_store_and_in_optuna(trials: Trials) -> None:
    assert trials.rungs(run(trials, 0, 0.30, 0.31)) == (2, 4)
    assert trials.judge(0, 2) == "continue", "it knows nobody"
    run(trials, 0, 0.42, 0.43, 0.44, 0.45)
    assert trials.end(0, Ending(outcome="finished"), RUNNING, device_seconds=9.0).state == "complete"
    run(trials, 1, 0.10, 0.11)
    assert trials.judge(1, 2) == "stop"
    assert trials.end(1, Ending(outcome="stopped"), RUNNING, device_seconds=9.0).stop_reason == "asha at epoch 2"
    run(trials, 2, 0.10, 0.41)
    assert trials.judge(2, 2) == "continue"
    failed = trials.end(2, Ending.failed("non-finite", "the loss is nan"), RUNNING, device_seconds=9.0)
    assert (failed.state, failed.failure_kind, failed.stop_reason) == ("failed", "non-finite", "the loss is nan")
    assert states(trials) == ["COMPLETE", "PRUNED", "FAIL"]
    assert {row.number: row for row in trials.store.trials()} == trials.rows


def test_the_next_driver_goes_on_with_what_it_finds_and_settles_what_nobody_goes_on_with(trials: Trials) -> None:
    for number, epochs in enumerate((6, 2, 6)):
        run(trials, number, *[0.3] * epochs)
        if not number:
            trials.end(0, Ending(outcome="finished"), RUNNING, device_seconds=1.0)
    after = driver_of(trials.store)
    assert after.unfinished() == [1, 2]
    assert len(run(after, 1, 0.32).epochs) == 3
    assert len(after.rows[1].attempts) == 2
    after.settle(Closing("budget", "the budget of 1 hours is used up"))
    assert [row.state for row in after.store.trials()] == ["complete", "pruned", "complete"], "the last was whole"
    assert after.rows[1].stop_reason == "study: the budget of 1 hours is used up"
    assert states(after) == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_a_trial_is_dropped_and_another_run_again_as_asked(trials: Trials) -> None:
    for number in range(2):
        run(trials, number, *[0.3] * 6)
        trials.end(number, Ending(outcome="finished"), RUNNING, device_seconds=1.0)
    ask(trials.store, "drop", 0, "an odd one")
    ask(trials.store, "rerun", 1, "")
    ask(trials.store, "rerun", 7, "")
    said: list[str] = []
    driver: Any = SimpleNamespace(
        trials=trials, store=trials.store, token=trials.token, running={}, to_drop={}, say=said.append
    )
    asked = pending(trials.store)
    for _ in range(2):  # a beat that was under way may bring them again
        Driver.obey(driver, asked)
    assert said == ["trial   0  dropped", "trial   1  in line again", "trial   7  there is no such trial"]
    assert trials.line == [1]
    assert pending(trials.store) == []
    assert (len(trials.rows) - len(trials.counted()), [row.number for row in trials.counted()]) == (1, [1])
    assert trials.store.trial(0).stop_reason == "dropped: an odd one"
    assert trials.upcoming(trials.study) == (2, None)
    assert run(trials, 2).rerun_of == 1


def test_a_service_that_refuses_a_trial_again_and_again_pauses_the_study_and_says_why() -> None:
    closed: list[Closing] = []
    driver: Any = SimpleNamespace(losses={}, closing=RUNNING, outage=SimpleNamespace(reason=""), _close=closed.append)
    ending = ending_of(ControllerError(ServiceError("s3://b/1: S3 answers HTTP 413")))
    for _ in range(LOSSES + 1):
        assert not closed
        assert Driver._bounded(driver, 1, ending) == ending, "it has not failed"
    assert [(each.word, each.reason) for each in closed] == [
        ("pause", "trial 1 cannot go on: s3://b/1: S3 answers HTTP 413")
    ]


def test_who_runs_out_of_memory_is_tried_again_alone_as_long_as_it_gets_further(trials: Trials) -> None:
    driver: Any = SimpleNamespace(trials=trials, alone={}, say=lambda _: None, spec=trials.spec, closing=RUNNING)
    short = Ending.failed("out-of-memory", "the node's memory")
    run(trials, 0, 0.3)
    assert Driver._set_aside(driver, 0, short) == "out-of-memory"
    trials.leave(0, "out-of-memory", device_seconds=1.0)
    run(trials, 0, 0.3)
    assert Driver._set_aside(driver, 0, short) == "out-of-memory", "Ray's monitor kills for others' needs, too"
    assert Driver._set_aside(driver, 0, short) == "", "it has failed"


def test_the_lease_comes_before_the_user_and_the_user_before_the_budget() -> None:
    told = [("another", True, True, "stop", "spent"), ("interrupted", False, True, "stop", "spent"),
            ("asked to stop", False, False, "stop", "spent"), ("spent", False, False, "run", "spent"),
            ("", False, False, "run", "")]  # fmt: skip
    for said, lost, interrupted, desired, over in told:
        word, reason = reason_to_close(lost=lost, interrupted=interrupted, desired=desired, over=over)
        assert reason.startswith(said)
        assert bool(word) == bool(said)
    assert [Closing(word).told for word in ("pause", "lost", "stop", "budget")] == ["pause", "pause", "stop", "stop"]


def test_how_a_trial_ended_says_who_ended_it() -> None:
    row = TrialRow(0, "running", {}, {}, 0, epochs=tuple(epoch_record(epoch, 0.3) for epoch in (1, 2, 3)))
    judged = TrialRow(**{**vars(row), "verdicts": {1: "continue", 2: "stop"}})
    still = SchedulerConfig(patience=2)
    assert ended(row, Ending(outcome="finished"), ASHA, GOAL, RUNNING) == ("complete", None)
    assert ended(judged, Ending(outcome="stopped"), ASHA, GOAL, RUNNING) == ("pruned", "asha at epoch 2")
    assert ended(judged, Ending(outcome="stopped"), still, GOAL, RUNNING) == (
        "complete", "no improvement up to epoch 2"
    )  # fmt: skip
    assert ended(row, Ending(outcome="stopped"), ASHA, GOAL, Closing("stop", "asked to stop")) == (
        "pruned", "study: stop"
    )  # fmt: skip
    state, why = ended(row, Ending(outcome="failed"), ASHA, GOAL, RUNNING)
    assert (state, why) == ("failed", "the trial's process ended without a word")


def test_a_study_has_finished_only_if_all_its_trials_have() -> None:
    done, open_ = TrialRow(0, "complete", {}, {}, 0), TrialRow(1, "running", {}, {}, 0)
    assert final_state(RUNNING, [done]) == ("finished", "every trial of the budget is done")
    assert final_state(RUNNING, [done, open_]) == ("paused", "some trials are unfinished")
    assert final_state(Closing("stop", "asked to stop"), [done]) == ("stopped", "asked to stop")
    assert final_state(Closing("budget", "used up"), [done]) == ("finished", "used up")


def test_an_extension_gives_a_study_that_stands_still_as_much_patience_again(tmp_path: Path) -> None:
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", "still")
    create_measured(store, light_study("still", budget={"trials": 9, "patience": 2}))
    study = store.load()
    same = [
        TrialRow(number, "complete", {}, {}, 0, ended_ms=number, epochs=(epoch_record(1, 0.3),)) for number in range(3)
    ]
    goal = Goal()
    budget = study.spec.budget
    assert "have not improved the best" in stands_still(budget, study.extended_at, same, goal)
    assert stands_still(budget, study.extended_at, same[:2], goal) == ""
    extended = type(study)(**{**vars(study), "extended_at": 3})
    assert stands_still(budget, extended.extended_at, same, goal) == ""


def test_the_best_stopped_trials_are_trained_to_their_end_when_nothing_else_is_left(tmp_path: Path) -> None:
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", "short")
    scheduler = {"grace_fraction": 0.3, "reduction_factor": 2, "min_trials": 1, "finish": 1}
    create_measured(store, light_study("short", lag=0, scheduler=scheduler, budget={"trials": 3}))
    trials = driver_of(store)
    run(trials, 0, *[0.5] * 6)
    trials.end(0, Ending(outcome="finished"), RUNNING, device_seconds=1.0)
    for number, robust in ((1, 0.3), (2, 0.4)):
        run(trials, number, robust, robust)
        assert trials.judge(number, 2) == "stop"
        assert trials.upcoming(store.load()) == ((2, 1) if number == 1 else (2, 2)), "it waits for who runs"
        trials.end(number, Ending(outcome="stopped"), RUNNING, device_seconds=1.0)
    assert trials.upcoming(store.load()) == (2, None)
    row = trials.begin(2)
    assert (row.state, row.finishing, trials.rungs(row)) == ("running", True, ())
    assert as_known(row, 9).state == "pruned"
    assert [each.epoch for each in as_known(run(trials, 2, 0.6, 0.6, 0.6, 0.6), 9).epochs] == [1, 2]
    done = trials.end(2, Ending(outcome="finished"), RUNNING, device_seconds=1.0)
    assert (done.state, done.stop_reason) == ("complete", "asha at epoch 2, then trained to its end")
    assert trials.upcoming(store.load()) is None
    assert states(trials) == ["COMPLETE", "PRUNED", "COMPLETE"]


def test_a_stopped_trial_whose_end_fails_is_what_it_was() -> None:
    epochs = tuple(epoch_record(epoch, 0.3) for epoch in (1, 2))
    row = TrialRow(0, "running", {}, {}, 0, epochs=epochs, verdicts={2: "stop"}, finishing=True)
    assert ended(row, Ending.failed("bug", "broken"), ASHA, GOAL, RUNNING) == (
        "pruned", "asha at epoch 2; its end failed: broken"
    )  # fmt: skip
