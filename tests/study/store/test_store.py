"""The study's truth, on SQLite and PostgreSQL: leases fence, writes repeat, nothing is lost between two writes."""

from __future__ import annotations

import hashlib
import json
import socket
import subprocess
import sys
import threading
import time

import optuna
import pytest
import sqlalchemy as sa

from study.driver.searcher import StudySearcher
from study.errors import LeaseLost, UserError
from study.search.optuna_book import OptunaBook
from study.search.samplers import proposals
from study.spec.files import parse_study
from study.store import requests as promotion_rows
from study.store import store as store_module
from study.store import tables as t
from study.store.database import engine_for
from study.store.lease import LeaseHeld, owner_identity
from study.store.store import DELETING, StudyStore, study_names

FILE = """\
name: small
method: {name: agft}
model: {arch: tiny-clip, pretrained: bundled}
data: {train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}
search:
  method.scale_ratio: {low: 0.2, high: 1.0}
  attack.eps: {choices: [1/255, 2/255, 4/255]}
  train.batch_size: {low: 32, high: 256, log: true}
budget: {trials: 6}
goal: {subject_to: {clean_accuracy: ">= 0.5"}}
seed: 3
"""
SPEC = parse_study(FILE, source="study.yaml")
ELSEWHERE = "another-host|17|0.00"  # a driver that this machine cannot look at


@pytest.fixture
def store(database) -> StudyStore:
    store = StudyStore(database, SPEC.name)
    store.create(SPEC)
    return store


def record(epoch: int, robust: float = 0.3, clean: float = 0.6) -> dict:
    return {"epoch": epoch, "robust_accuracy": robust, "best_robust_accuracy": robust, "best_clean_accuracy": clean,
            "best_feasible": clean >= 0.5, "timestamp_ms": epoch}  # fmt: skip


def commit(store: StudyStore, token: int, number: int, *epochs: dict) -> list[dict]:
    fresh, row = store.record(token, number, list(epochs), latest={"uri": "s3://b/l"}, best=None, device_seconds=1.0)
    assert row == store.trial(number)
    return fresh


# --- the study and its lease ------------------------------------------------------------------------------------------


def test_creating_twice_is_one_study_and_another_spec_is_refused_with_the_difference(store):
    assert store.create(SPEC) is False
    assert study_names(store.url) == ["small"]
    other = parse_study(FILE.replace("seed: 3", "seed: 4"), source="study.yaml")
    assert store.create(other) is True, "nothing has been measured yet"
    assert store.create(SPEC) is True
    store.start_trial(store.acquire(owner_identity()), 0, {}, {})
    with pytest.raises(UserError, match="seed: 3 -> 4"):
        store.create(other)


def test_a_study_of_an_older_version_without_todays_fields_is_the_same_study(store):
    store.start_trial(store.acquire(owner_identity()), 0, {}, {})
    old = json.loads(SPEC.canonical())
    del old["sampler"], old["prior"], old["resources"]["silence"]
    text = json.dumps(old)
    stored = {"spec": text, "spec_hash": hashlib.sha256(text.encode()).hexdigest()}
    with store.engine.begin() as connection:
        connection.execute(sa.update(t.studies).values(**stored))
    assert store.create(SPEC) is False
    with pytest.raises(UserError) as told:
        store.create(parse_study(FILE.replace("seed: 3", "seed: 4"), source="study.yaml"))
    assert str(told.value).splitlines()[1:] == ["  seed: 3 -> 4"]


def test_a_driver_that_was_cut_off_cannot_write_under_a_spec_that_was_replaced_meanwhile(store):
    cut_off = store.acquire(ELSEWHERE, seconds=0.0)
    assert store.create(parse_study(FILE.replace("seed: 3", "seed: 4"), source="study.yaml")) is True
    with pytest.raises(LeaseLost):
        store.set_study(cut_off, baseline={"clean_accuracy": 0.9})


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


def test_every_write_of_a_replaced_driver_is_refused(store):
    old = store.acquire(ELSEWHERE, seconds=0.0)
    store.start_trial(old, 0, {}, {})
    new = store.acquire(owner_identity())
    writes = [
        lambda: store.renew(old, driven=1.0),
        lambda: store.set_study(old, baseline={}),
        lambda: store.start_trial(old, 1, {}, {}),
        lambda: commit(store, old, 0, record(1)),
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
    store.start_trial(token, 0, {"x": 1}, {})
    assert [r["epoch"] for r in commit(store, token, 0, record(1))] == [1]
    assert [r["epoch"] for r in commit(store, token, 0, record(1), record(2))] == [2]
    assert [r["epoch"] for r in commit(store, token, 0, record(1), record(2))] == []
    [trial] = store.trials()
    assert [r["epoch"] for r in trial.epochs] == [1, 2]
    assert trial.latest == {"uri": "s3://b/l"}


def test_a_verdict_is_decided_once(store):
    token = store.acquire(owner_identity())
    store.start_trial(token, 0, {}, {})
    assert store.decide(token, 0, 1, "stop", "because") == "stop"
    assert store.decide(token, 0, 1, "continue", "again") == "stop"


def test_attempts_and_their_cost_add_up_over_drivers(store):
    for _ in range(2):
        token = store.acquire(owner_identity())
        store.start_trial(token, 0, {}, {})
        commit(store, token, 0, record(1))
        store.end_attempt(token, 0, "paused")
        store.release(token, "paused")
    [trial] = store.trials()
    assert [attempt.token for attempt in trial.attempts] == [1, 2]
    assert trial.device_seconds == pytest.approx(2.0)
    assert not trial.finished


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
    gone = f"{socket.gethostname()}|{2**22 + 1}|1.00"
    with store.engine.begin() as connection:
        for name in (died, moved):
            connection.execute(sa.update(t.promotions).where(t.promotions.c.name == name).values(owner=gone))
    assert promotion_rows.settle(store, lambda: [moved]) == ["broken", "promoted"]
    states = {row["name"]: row["state"] for row in promotion_rows.promotions(store)}
    assert states == {died: "broken", moved: "promoted", alive: "started"}


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


def searcher_of(store: StudyStore, token: int, *, slots: int = 2) -> StudySearcher:
    """The real searcher over the real store; trials "run" by the test's own hand."""
    book = OptunaBook(store, SPEC, {"clean_accuracy": 0.5})
    book.enqueue_warm_starts()

    def begin(number: int, params: dict) -> dict:
        store.start_trial(token, number, params, {})
        return {"number": number, **params}

    def end(number: int, error: bool) -> None:
        store.finish_trial(token, number, "failed" if error else "complete", failure_kind="bug" if error else None)
        book.tell(next(row for row in store.trials() if row.number == number))

    return StudySearcher(
        book, budget=lambda: 6, dropped=lambda: 0, slots=slots, admit=lambda _: True, begin=begin, end=end,
        closing=lambda: False,
    )  # fmt: skip


def optuna_states(store: StudyStore) -> list[str]:
    study = optuna.load_study(study_name="agft/small", storage=store.url)
    return [trial.state.name for trial in study.trials]


def test_a_study_ends_after_its_budget_with_the_warm_start_first(store):
    token = store.acquire(owner_identity())
    searcher = searcher_of(store, token)
    seen = []
    for step in range(6):
        settings = searcher.suggest(f"tune-{step}")
        seen.append(settings)
        commit(store, token, settings["number"], record(1, 0.1 * step))
        searcher.book.observe(settings["number"], 1, 0.1 * step)
        searcher.on_trial_complete(f"tune-{step}")
    assert searcher.suggest("tune-6") == "FINISHED"
    assert [settings["number"] for settings in seen] == list(range(6))
    assert seen[0]["method.scale_ratio"] == 0.4  # the file's own value, the paper's
    assert seen[0]["train.batch_size"] == 256
    assert len({str(settings) for settings in seen}) == 6
    assert optuna_states(store) == ["COMPLETE"] * 6


def test_no_more_than_the_free_slots_run_at_once(store):
    searcher = searcher_of(store, store.acquire(owner_identity()), slots=2)
    assert searcher.suggest("a")["number"] == 0
    assert searcher.suggest("b")["number"] == 1
    assert searcher.suggest("c") is None


def test_the_same_seed_and_order_give_the_same_samples(tmp_path):
    def run(name: str) -> list[dict]:
        store = StudyStore(f"sqlite:///{tmp_path}/{name}.db", SPEC.name)
        store.create(SPEC)
        token = store.acquire(owner_identity())
        searcher, seen = searcher_of(store, token), []
        for step in range(6):
            settings = searcher.suggest(str(step))
            commit(store, token, settings["number"], record(1, settings["method.scale_ratio"]))
            searcher.on_trial_complete(str(step))
            seen.append(settings)
        return seen

    assert run("one") == run("two")


def test_the_plan_shows_the_samples_that_the_study_draws(store):
    searcher = searcher_of(store, store.acquire(owner_identity()), slots=5)
    drawn = [{k: v for k, v in searcher.suggest(str(i)).items() if k != "number"} for i in range(5)]
    assert [params for _, params in proposals(optuna.create_study(), SPEC, 5)] == drawn


def test_a_new_driver_continues_what_was_running_and_repeats_nothing(store):
    token = store.acquire(ELSEWHERE, seconds=0.0)
    first = searcher_of(store, token)
    done, cut = first.suggest("a"), first.suggest("b")
    commit(store, token, done["number"], record(1, 0.5))
    first.on_trial_complete("a")

    token = store.acquire(owner_identity())
    second = searcher_of(store, token)
    again = second.suggest("c")
    assert again == cut  # the same number and parameters
    new = second.suggest("d")
    assert new["number"] == 2
    assert optuna_states(store) == ["COMPLETE", "RUNNING", "RUNNING"]


def test_a_crash_between_our_write_and_optunas_is_made_up(store):
    token = store.acquire(ELSEWHERE, seconds=0.0)
    first = searcher_of(store, token)
    settings = first.suggest("a")
    commit(store, token, settings["number"], record(1, 0.5))
    store.finish_trial(token, settings["number"], "complete")  # killed before Optuna was told

    second = searcher_of(store, store.acquire(owner_identity()))
    assert optuna_states(store)[0] == "COMPLETE"
    assert second.suggest("b")["number"] == 1


def test_a_crash_between_asking_optuna_and_our_write_loses_no_number(store):
    store.acquire(ELSEWHERE, seconds=0.0)
    book = OptunaBook(store, SPEC, {"clean_accuracy": 0.5})
    book.enqueue_warm_starts()
    book.study.ask()  # killed before any parameter was drawn

    token = store.acquire(owner_identity())
    settings = searcher_of(store, token).suggest("a")
    assert settings["number"] == 0
    assert settings["method.scale_ratio"] == 0.4
    assert [row.number for row in store.trials()] == [0]


def test_states_in_optuna_are_honest(store):
    token = store.acquire(owner_identity())
    searcher = searcher_of(store, token, slots=4)
    numbers = [searcher.suggest(str(i))["number"] for i in range(3)]
    for number, state in zip(numbers, ("complete", "pruned", "failed"), strict=True):
        commit(store, token, number, record(1, 0.2))
        searcher.book.observe(number, 1, 0.2)
        store.finish_trial(token, number, state, failure_kind="non-finite" if state == "failed" else None)
        row = next(row for row in store.trials() if row.number == number)
        searcher.book.tell(row)
        searcher.book.tell(row)  # telling again changes nothing
    study = optuna.load_study(study_name="agft/small", storage=store.url)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "PRUNED", "FAIL"]
    assert study.trials[2].user_attrs["agft.failure_kind"] == "non-finite"
    assert study.trials[1].intermediate_values == {1: 0.2}
    assert study.trials[0].system_attrs["constraints:clean_accuracy"] == pytest.approx(-0.1)
    assert study.best_trial.number == 0


def test_the_lease_outlives_a_few_missed_heartbeats():
    assert store_module.LEASE_SECONDS >= 5 * 5.0
