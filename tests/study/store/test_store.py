"""The study's truth, on SQLite and PostgreSQL: leases fence, writes repeat, nothing is lost between two writes."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext

from study.errors import LeaseLost, StudyFailed, UserError
from study.search.proposals import first_proposals, given
from study.spec.files import parse_study
from study.store import requests as promotion_rows
from study.store import store as store_module
from study.store import tables as t
from study.store.database import engine_for
from study.store.lease import LeaseHeld, owner_identity, owner_is_gone
from study.store.rows import Proposal
from study.store.store import DELETING, StudyStore, study_names
from tests.support.epochs import commit, epoch_record, weights
from tests.support.hand import BASELINE, Hand, in_optuna
from tests.support.study_files import minimal
from trainers.schema.records import Ending, Measurement, Report, Sign

FILE = minimal(
    search="""
  method.scale_ratio: {low: 0.2, high: 1.0}
  attack.eps: {choices: [1/255, 2/255, 4/255]}
  train.batch_size: {low: 32, high: 256, log: true}""",
    budget="{trials: 6}", goal='{subject_to: {clean_accuracy: ">= 0.5"}}', seed="3",
)  # fmt: skip
SPEC = parse_study(FILE, source="study.yaml")
ELSEWHERE = "another-host|17|0.00|m.b.1"  # a driver that this machine cannot look at


@pytest.fixture
def store(database) -> StudyStore:
    store = StudyStore(database, SPEC.name)
    store.create(SPEC)
    return store


# --- the study and its lease ------------------------------------------------------------------------------------------


def test_creating_twice_is_one_study_and_another_spec_is_refused_with_the_difference(store):
    assert store.create(SPEC) is False
    assert study_names(store.url) == ["small"]
    other = parse_study(FILE.replace("seed: 3", "seed: 4"), source="study.yaml")
    assert store.create(other) is True, "nothing has been measured yet"
    assert store.create(SPEC) is True
    store.start_trial(store.acquire(owner_identity()), Proposal(0, {}), {})
    with pytest.raises(UserError, match="seed: 3 -> 4"):
        store.create(other)


def test_a_driver_that_was_cut_off_cannot_write_under_a_spec_that_was_replaced_meanwhile(store):
    cut_off = store.acquire(ELSEWHERE, seconds=0.0)
    assert store.create(parse_study(FILE.replace("seed: 3", "seed: 4"), source="study.yaml")) is True
    with pytest.raises(LeaseLost):
        store.set_study(cut_off, baseline=Measurement(clean_accuracy=0.9, robust_accuracy=0.1, datasets={}))


def test_a_study_that_is_half_deleted_can_only_be_deleted(store):
    store.release(store.acquire(owner_identity(), state=DELETING), DELETING, "half deleted")
    with pytest.raises(UserError, match="agft delete small"):
        store.acquire(owner_identity())
    assert store.acquire(owner_identity(), state=DELETING)


def test_an_unknown_study_names_the_nearest(store):
    with pytest.raises(UserError, match="did you mean 'small'"):
        StudyStore(store.url, "smal").load()


def test_one_driver_at_a_time(store):
    store.acquire(owner_identity())
    with pytest.raises(LeaseHeld, match="is being driven by process"):
        store.acquire(ELSEWHERE)


def test_the_lease_of_a_dead_process_of_this_machine_is_taken_at_once(store):
    code = "from study.store.lease import owner_identity; print(owner_identity())"
    dead = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    first = store.acquire(dead)
    assert store.load().lease_seconds == 0, "a terminal does not take it for alive"
    assert store.acquire(owner_identity()) == first + 1


def test_the_lease_of_another_machine_is_waited_out(store):
    store.acquire(ELSEWHERE, seconds=1.0)
    with pytest.raises(LeaseHeld):
        store.acquire(owner_identity())
    time.sleep(1.2)
    assert store.acquire(owner_identity()) == 2


@pytest.mark.parametrize(
    ("numbering", "gone"),
    [
        ("{machine}.{start}.4026500000", False),  # a container that is called like its host
        ("0123456789ab.{start}.{pids}", False),  # a machine that is called like this one
        (".another-start.{pids}", False),  # the same, of a machine that has no number
        ("{machine}.another-start.{pids}", True),  # this machine, before it was started again
    ],
)
def test_a_process_number_counts_only_where_it_was_given(store, numbering, gone):
    host, _, started, ours = owner_identity().split("|")
    machine, start, pids = ours.split(".")
    theirs = numbering.format(machine=machine or "none", start=start, pids=pids)
    owner = f"{host}|{2**22 + 1}|{started}|{theirs}"
    assert owner_is_gone(owner) == (gone and bool(machine))
    store.acquire(owner)
    assert (store.load().lease_seconds > 0) == (not owner_is_gone(owner)), "a terminal there does not take it for dead"


def test_every_write_of_a_replaced_driver_is_refused(store):
    old = store.acquire(ELSEWHERE, seconds=0.0)
    store.start_trial(old, Proposal(0, {}), {})
    new = store.acquire(owner_identity())
    writes = [
        lambda: store.renew(old, driven=1.0),
        lambda: store.set_study(old, baseline=None),
        lambda: store.start_trial(old, Proposal(1, {}), {}),
        lambda: commit(store, old, 0, epoch_record(1)),
        lambda: store.decide(old, 0, 1, "stop", ""),
        lambda: store.finish_trial(old, 0, "complete"),
        lambda: store.end_attempt(old, 0, "paused"),
        lambda: store.release(old, "paused"),
    ]
    for write in writes:
        with pytest.raises(LeaseLost):
            write()
    [trial] = store.trials()
    assert (trial.state, trial.epochs, trial.verdicts) == ("running", (), {})
    assert store.load().token == new


def test_two_drivers_that_start_together_get_one_lease(database):
    StudyStore(database, SPEC.name).create(SPEC)
    outcomes: list[object] = []
    gate = threading.Barrier(4)

    def start() -> None:
        store = StudyStore(database, SPEC.name)
        gate.wait()
        try:
            outcomes.append(store.acquire(ELSEWHERE))
        except LeaseHeld as held:
            outcomes.append(held)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(outcome, int) for outcome in outcomes) == 1


def test_renewing_adds_driving_time_and_tells_what_users_want(store):
    token = store.acquire(owner_identity())
    assert store.renew(token, driven=2.5) == "run"
    store.desire("pause")
    assert store.renew(token, driven=1.0) == "pause"
    assert store.load().driven_seconds == pytest.approx(3.5)
    store.release(token, "paused")
    assert store.load().state == "paused"
    assert store.acquire(owner_identity()) == token + 1
    assert store.load().desired == "run"


# --- trials -----------------------------------------------------------------------------------------------------------


def test_committing_a_history_again_adds_only_what_is_new(store):
    token = store.acquire(owner_identity())
    store.start_trial(token, Proposal(0, {"x": 1}), {})
    latest = weights("s3://b/l")
    commit(store, token, 0, epoch_record(1), latest=latest)
    commit(store, token, 0, epoch_record(1, robust=0.9), epoch_record(2))
    commit(store, token, 0, epoch_record(1), epoch_record(2))
    [trial] = store.trials()
    assert trial.epochs == (epoch_record(1), epoch_record(2)), "what was stored first stays"
    assert (trial.latest, trial.best) == (latest, None)


def test_a_commit_whose_answer_was_lost_is_made_again_and_tells_what_was_new(store):
    token = store.acquire(owner_identity())
    before = store.start_trial(token, Proposal(0, {}), {})
    report = Report(epoch=1, records=(epoch_record(1),))
    assert store.record(token, before, report, device_seconds=1.0).epochs == report.records
    assert store.record(token, before, report, device_seconds=1.0) == store.trial(0)


def test_a_record_that_this_version_did_not_write_is_refused_with_its_place(store):
    token = store.acquire(owner_identity())
    store.start_trial(token, Proposal(3, {}), {})
    with store.engine.begin() as connection:
        connection.execute(sa.insert(t.epochs).values(study="small", number=3, epoch=1, record={"epoch": 1}))
    with pytest.raises(StudyFailed, match=r"'small': trial 3: epoch 1: timestamp_ms: Field required"):
        store.trials()


def test_a_verdict_is_decided_once(store):
    token = store.acquire(owner_identity())
    store.start_trial(token, Proposal(0, {}), {})
    assert store.decide(token, 0, 1, "stop", "because") == "stop"
    assert store.decide(token, 0, 1, "continue", "again") == "stop"


def test_attempts_and_their_cost_add_up_over_drivers(store):
    for _ in range(2):
        token = store.acquire(owner_identity())
        store.start_trial(token, Proposal(0, {}), {})
        commit(store, token, 0, epoch_record(1))
        store.end_attempt(token, 0, "paused")
        store.release(token, "paused")
    [trial] = store.trials()
    assert [attempt.token for attempt in trial.attempts] == [1, 2]
    assert trial.device_seconds == pytest.approx(2.0)
    assert not trial.finished


def test_a_released_study_has_no_trial_inside_an_epoch(store):
    token = store.acquire(owner_identity())
    store.start_trial(token, Proposal(0, {}), {})
    sign = Sign(stage="training", done=780, total=800, images_per_second=10)
    store.show(token, {0: sign})
    assert store.signs() == {0: sign}
    store.release(token, "paused")
    assert store.signs() == {}


def test_promotions_are_counted(store):
    name = promotion_rows.start(store)
    promotion_rows.count_access(store, name, model="trial 2", sets=["tiny-letters"])
    promotion_rows.end(store, name, "promoted", {"trial": 2})
    promotion_rows.start(store)
    assert [row["state"] for row in promotion_rows.promotions(store)] == ["promoted", "started"]
    [access] = promotion_rows.accesses(store)
    assert (access["promotion"], access["model"], access["sets"]) == (name, "trial 2", ["tiny-letters"])


def test_a_promotion_whose_process_is_gone_is_settled_by_what_the_champions_history_says(store):
    died, moved = promotion_rows.start(store), promotion_rows.start(store)
    alive = promotion_rows.start(store)
    gone = "|".join([socket.gethostname(), str(2**22 + 1), "1.00", owner_identity().rpartition("|")[2]])
    with store.engine.begin() as connection:
        for name in (died, moved):
            connection.execute(sa.update(t.promotions).where(t.promotions.c.name == name).values(owner=gone))
    assert promotion_rows.settle(store, lambda: [moved]) == ["broken", "promoted"]
    states = {row["name"]: row["state"] for row in promotion_rows.promotions(store)}
    assert states == {died: "broken", moved: "promoted", alive: "started"}


def test_the_migrations_make_the_tables_that_the_code_reads_and_writes(store):
    with store.engine.connect() as connection:
        ours = {"include_name": lambda name, kind, _: kind != "table" or name in t.metadata.tables}
        assert compare_metadata(MigrationContext.configure(connection, opts=ours), t.metadata) == []


def test_a_database_of_a_newer_version_is_refused(store):
    with store.engine.begin() as connection:
        connection.execute(sa.text("UPDATE agft_schema SET version_num = '9999'"))
    engine_for.cache_clear()
    with pytest.raises(Exception, match="newer than this version"):
        StudyStore(store.url, "small")


@pytest.mark.parametrize("url", ["mysql://x/y", "not an address"])
def test_an_address_that_cannot_work_is_a_user_error(url):
    with pytest.raises(UserError, match="AGFT_STUDY_DB"):
        engine_for(url)


# --- the searcher -----------------------------------------------------------------------------------------------------


@pytest.fixture
def started(store) -> StudyStore:
    """The study, its unmodified model measured."""
    token = store.acquire(owner_identity())
    store.set_study(token, baseline=BASELINE)
    store.release(token, "paused")
    return store


def optuna_states(store: StudyStore) -> list[str]:
    return [trial.state.name for trial in in_optuna(store)]


def test_a_study_ends_after_its_budget_with_the_warm_start_first(started):
    hand = Hand(started)
    seen = hand.run_all()
    assert hand.start() == "FINISHED"
    assert [settings["number"] for settings in seen] == list(range(6))
    assert seen[0]["method.scale_ratio"] == 0.4  # the file's own value, the paper's
    assert seen[0]["train.batch_size"] == 256
    assert len({str(settings) for settings in seen}) == 6
    assert optuna_states(started) == ["COMPLETE"] * 6
    assert [row.origin for row in started.trials()] == ["the file's values"] + [None] * 5


def test_no_more_than_the_free_slots_run_at_once(started):
    hand = Hand(started, slots=2)
    assert [hand.start()["number"] for _ in range(2)] == [0, 1]
    assert hand.start() is None


def test_a_trial_waits_for_those_that_it_is_to_know(started):
    Hand(started, slots=1).leave("paused")  # lag 2
    hand = Hand(started, slots=9)
    assert started.load().lag == 2, "whatever fits at once later"
    assert [hand.start()["number"] for _ in range(3)] == [0, 1, 2]
    assert hand.start() is None
    hand.finish(1, 0.3)
    assert hand.start() is None, "trial 3 knows trial 0, which has not ended"
    hand.finish(0, 0.3)
    assert hand.start()["number"] == 3
    assert hand.start()["number"] == 4
    assert hand.start() is None


def test_the_plan_shows_the_samples_that_the_study_draws(started):
    hand = Hand(started)
    drawn = [{k: v for k, v in hand.start().items() if k != "number"} for _ in range(5)]
    assert first_proposals(SPEC, 5, given(SPEC, SPEC.dimensions())) == drawn


def test_a_new_driver_continues_what_was_running_and_repeats_nothing(started):
    first = Hand(started, owner=ELSEWHERE, seconds=0.0)
    done, cut = first.start(), first.start()
    first.finish(done["number"], 0.5)
    second = Hand(started)
    assert second.start() == cut  # the same number and parameters
    assert second.start()["number"] == 2
    assert optuna_states(started) == ["COMPLETE", "RUNNING", "RUNNING"]


def test_a_crash_between_our_write_and_optunas_is_made_up(started):
    first = Hand(started, owner=ELSEWHERE, seconds=0.0)
    number = first.start()["number"]
    first.report(number, epoch_record(1, 0.5))
    started.finish_trial(first.token, number, "complete")  # killed before Optuna was told
    second = Hand(started)
    assert optuna_states(started)[0] == "COMPLETE"
    assert second.start()["number"] == 1


def test_states_in_optuna_are_honest(started):
    hand = Hand(started)
    numbers = [hand.start()["number"] for _ in range(3)]
    for number in numbers:
        hand.report(number, epoch_record(1, 0.2))
    hand.end(0)
    hand.end(1, Ending(outcome="stopped"))
    hand.end(2, Ending.failed("non-finite", "the loss is nan"))
    hand.trials.projection.follow(started.trials())  # telling again changes nothing
    trials = in_optuna(started)
    assert [trial.state.name for trial in trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert trials[2].user_attrs["agft.failure_kind"] == "non-finite"
    assert trials[1].intermediate_values == {1: 0.2}
    assert trials[0].constraints == {"clean_accuracy": pytest.approx(-0.1)}


def test_the_lease_outlives_a_few_missed_heartbeats():
    assert store_module.LEASE_SECONDS >= 5 * 5.0
