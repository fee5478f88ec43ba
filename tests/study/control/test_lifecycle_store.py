"""Lifecycle on the real databases: dropped and repeated trials, budgets that grow, archives, a server that is away."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import optuna
import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from study.control.lifecycle import delete_study, drop_trial, extend_study, rerun_trial, stop_study
from study.driver.searcher import StudySearcher
from study.errors import StudyFailed, UserError
from study.search.optuna_book import OptunaBook, delete_optuna_studies
from study.spec.config import StudyConfig
from study.spec.files import parse_study
from study.store import database as database_module
from study.store.archive import export_study, import_study
from study.store.database import away, patient
from study.store.lease import LeaseHeld, owner_identity
from study.store.requests import answer, pending
from study.store.store import StudyStore, study_names

FILE = """\
name: small
method: {name: agft}
model: {arch: tiny-clip, pretrained: bundled}
data: {train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}
search:
  method.scale_ratio: {low: 0.2, high: 1.0}
  attack.eps: {choices: [1/255, 2/255, 4/255]}
budget: {trials: 4, hours: 2}
goal: {subject_to: {clean_accuracy: ">= 0.5"}}
"""
SPEC = parse_study(FILE, source="study.yaml")
BASELINE = {"clean_accuracy": 0.9, "robust_accuracy": 0.1, "datasets": {}}


def record(epoch: int, robust: float) -> dict:
    return {"epoch": epoch, "robust_accuracy": robust, "best_robust_accuracy": robust, "best_clean_accuracy": 0.6,
            "best_feasible": True, "timestamp_ms": epoch}  # fmt: skip


class Hand:
    """The real searcher over the real store, its trials "run" by hand."""

    def __init__(self, store: StudyStore) -> None:
        self.store, self.token = store, store.acquire(owner_identity())
        self.book = OptunaBook(store, store.load().spec, {"clean_accuracy": 0.5})
        self.book.tidy()
        if not self.book.mirrors():
            self.book.rebuild(self.token)
        self.book.enqueue_warm_starts()
        self.searcher = StudySearcher(
            self.book, budget=lambda: store.load().spec.budget.trials,
            dropped=lambda: sum(row.state == "dropped" for row in store.trials()), slots=9, admit=lambda _: True,
            begin=self.begin, end=self.end, closing=lambda: False,
        )  # fmt: skip

    def begin(self, number: int, params: dict) -> dict:
        self.store.start_trial(self.token, number, params, {}, rerun_of=self.book.rerun_of(number))
        return {"number": number, **params}

    def end(self, number: int, error: bool) -> None:
        self.book.tell(self.store.finish_trial(self.token, number, "complete"))

    def start(self) -> dict:
        return self.searcher.suggest(f"tune-{time.monotonic_ns()}")

    def finish(self, number: int, robust: float) -> None:
        self.store.record(self.token, number, [record(1, robust)], latest=None, best=None, device_seconds=1.0)
        self.searcher.on_trial_complete(next(k for k, v in self.searcher.numbers.items() if v == number))

    def run_all(self) -> list[dict]:
        seen = []
        while isinstance(settings := self.start(), dict):
            self.finish(settings["number"], 0.1 * (settings["number"] + 1))
            seen.append(settings)
        return seen

    def leave(self, state: str = "finished") -> None:
        self.store.release(self.token, state)


GRID = parse_study(
    FILE.replace("{low: 0.2, high: 1.0}", "{choices: [0.4, 0.8]}").replace("[1/255, 2/255, 4/255]", "[1/255, 2/255]")
    + "sampler: {name: grid}",
    source="grid.yaml",
)


def measured(url: str, spec: StudyConfig) -> StudyStore:
    """A new study whose unmodified model counts as measured."""
    store = StudyStore(url, spec.name)
    store.create(spec)
    token = store.acquire(owner_identity())
    store.set_study(token, baseline=BASELINE)
    store.release(token, "paused")
    return store


@pytest.fixture
def store(database) -> StudyStore:
    return measured(database, SPEC)


def in_optuna(store: StudyStore) -> list[optuna.trial.FrozenTrial]:
    name = store.load().optuna_name
    return optuna.load_study(study_name=name, storage=store.url).get_trials()


def finished(store: StudyStore) -> list[dict]:
    hand = Hand(store)
    for request in pending(store):
        hand.book.enqueue_again(request["number"], request["id"])
        answer(store, hand.token, request["id"], "in line again")
    seen = hand.run_all()
    hand.leave()
    return seen


def test_an_extended_study_goes_on_where_it_ended(store):
    first = finished(store)
    assert len(first) == 4
    assert "6 trials" in extend_study(store, trials=2, hours=1.0, gpu_hours=0)
    assert store.load().spec.budget.hours == 3.0
    second = finished(store)
    assert [settings["number"] for settings in second] == [4, 5]
    assert all(new not in first for new in second)
    assert store.create(SPEC) is False, "the same file is still the same study"
    with pytest.raises(UserError, match=r"no budget\.gpu_hours"):
        extend_study(store, trials=0, hours=0, gpu_hours=5)
    bigger = parse_study(FILE.replace("trials: 4", "trials: 9"), source="study.yaml")
    with pytest.raises(UserError, match=r"budget\.trials: 4 -> 9(.|\n)*agft extend small"):
        store.create(bigger)


def test_two_terminals_that_extend_at_once_both_do(store):
    gate = threading.Barrier(4)

    def more() -> None:
        gate.wait()
        extend_study(store, trials=1, hours=0, gpu_hours=0)

    threads = [threading.Thread(target=more) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.load().spec.budget.trials == 8


def test_a_dropped_trial_counts_nowhere_and_another_takes_its_place(store):
    finished(store)
    assert "is dropped" in drop_trial(store, 2, "wrong machine")
    assert (store.trial(2).state, store.trial(2).stop_reason) == ("dropped", "dropped: wrong machine")
    assert [trial.state.name for trial in in_optuna(store)] == ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"]
    assert [trial.value for trial in in_optuna(store)] == [pytest.approx(v) if v else None for v in (0.1, 0.2, 0, 0.4)]
    assert pending(store) == []
    assert [settings["number"] for settings in finished(store)] == [4]
    with pytest.raises(UserError, match="dropped already"):
        drop_trial(store, 2, "")
    with pytest.raises(UserError, match="has no trial 17"):
        drop_trial(store, 17, "")
    assert [name for name in optuna.get_all_study_names(store.url) if name.startswith("agft/small")] == ["agft/small/1"]


def test_dropping_a_trial_keeps_those_that_run_and_those_that_wait(store):
    hand = Hand(store)
    first, second = hand.start(), hand.start()
    hand.finish(first["number"], 0.3)
    hand.book.enqueue_again(first["number"], 77)
    hand.book.enqueue_again(first["number"], 77)  # asked once
    hand.store.finish_trial(hand.token, first["number"], "dropped")
    hand.book.rebuild(hand.token)
    assert [trial.state.name for trial in in_optuna(store)] == ["FAIL", "RUNNING", "WAITING"]
    again = hand.start()
    assert again == {**first, "number": 2}
    hand.finish(second["number"], 0.5)
    assert [trial.state.name for trial in in_optuna(store)] == ["FAIL", "COMPLETE", "RUNNING"]


def test_half_a_drop_is_completed_by_the_next_driver(store):
    finished(store)
    hand = Hand(store)
    hand.store.finish_trial(hand.token, 2, "dropped")  # killed before Optuna's side of it
    optuna.create_study(study_name="agft/small/1", storage=store.url)  # or in the middle of that
    hand.leave()
    [new] = finished(store)
    assert new["number"] == 4
    assert in_optuna(store)[2].state.name == "FAIL"
    assert optuna.get_all_study_names(store.url) == ["agft/small/1"]


def test_a_trial_is_run_again_once_beside_the_budget(store):
    first = finished(store)
    assert "will be run again" in rerun_trial(store, 1)
    hand = Hand(store)
    [request] = pending(store)
    for _ in range(2):  # a driver that was killed before it could say so does it again
        hand.book.enqueue_again(request["number"], request["id"])
    [again] = hand.run_all()
    assert again == {**first[1], "number": 4}
    assert store.trial(4).rerun_of == 1
    assert len(store.trials()) == 5


def test_what_is_asked_of_a_live_driver_waits_for_it(store):
    hand = Hand(store)
    number = hand.start()["number"]
    assert "asked" in drop_trial(store, number, "")
    assert "asked" in stop_study(store)
    assert store.load().desired == "stop"
    assert [request["kind"] for request in pending(store)] == ["drop"]
    with pytest.raises(UserError, match="has not finished"):
        rerun_trial(store, number)
    with pytest.raises(LeaseHeld):
        store.delete()


def test_a_study_that_nobody_drives_is_stopped_at_once(store):
    hand = Hand(store)
    done, cut = hand.start(), hand.start()
    hand.finish(done["number"], 0.3)
    hand.leave("paused")
    assert "1 unfinished" in stop_study(store)
    assert store.load().state == "stopped"
    assert [row.state for row in store.trials()] == ["complete", "pruned"]
    assert in_optuna(store)[cut["number"]].state.name == "PRUNED"


def test_an_archive_brings_everything_to_another_database(store, tmp_path):
    finished(store)
    rerun_trial(store, 0)
    path = tmp_path / "small.json"
    assert export_study(store, path)["agft_trial"] == 4
    other = f"sqlite:///{tmp_path}/other.db"
    assert import_study(other, path) == "small"
    there = StudyStore(other, "small")
    assert there.trials() == store.trials()
    assert there.load().slug == store.load().slug
    assert len(pending(there)) == 1
    hand = Hand(there)
    assert [trial.value for trial in in_optuna(there)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    extend_study(there, trials=1, hours=0, gpu_hours=0)
    [new] = hand.run_all()
    assert new["number"] == 4, "the warm starts are not queued again"
    with pytest.raises(UserError, match="exists in this database"):
        import_study(other, path)
    assert import_study(other, path, name="twin") == "twin"
    assert study_names(other) == ["small", "twin"] or study_names(other) == ["twin", "small"]
    content = json.loads(path.read_text())
    for wrong in ({**content, "format": "x"}, [], {**content, "study": {"spec": "{}"}}):
        path.write_text(json.dumps(wrong))
        with pytest.raises(UserError, match=str(path)):
            import_study(other, path, name="broken")
    assert "broken" not in study_names(other)


def test_a_deleted_study_leaves_nothing_in_the_database(store):
    finished(store)
    delete_optuna_studies(store)
    store.delete()
    assert "small" not in study_names(store.url)
    with store.engine.connect() as connection:
        for table in ("agft_trial", "agft_attempt", "agft_epoch"):
            assert connection.execute(sa.text(f"SELECT count(*) FROM {table} WHERE study = 'small'")).scalar() == 0
    assert "agft/small" not in optuna.get_all_study_names(store.url)


def test_a_write_is_repeated_until_the_database_is_back(tmp_path):
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", SPEC.name)
    store.create(SPEC)
    token = store.acquire(owner_identity())
    blocker = store.engine.connect()
    blocker.exec_driver_sql("BEGIN IMMEDIATE")
    with store.engine.connect() as other:
        other.exec_driver_sql("PRAGMA busy_timeout=1")
        pooled = other.connection.dbapi_connection
    assert pooled is not None
    threading.Timer(1.5, blocker.close).start()
    before = time.monotonic()
    assert store.start_trial(token, 0, {"x": 1}, {}).params == {"x": 1}
    assert time.monotonic() - before > 1.0


def test_patience_has_an_end_that_is_named(monkeypatch):
    monkeypatch.setattr(database_module, "PATIENCE_SECONDS", 0.5)

    @patient
    def away() -> None:
        raise sa.exc.OperationalError("SELECT 1", {}, Exception("no route"))

    with pytest.raises(StudyFailed, match="no route"):
        away()


def test_a_study_whose_name_looks_like_a_generation_of_another_is_its_own(store):
    finished(store)
    drop_trial(store, 0, "")  # Optuna's study of this one has a second generation now
    other = measured(store.url, SPEC.model_copy(update={"name": "small.1"}))
    assert len(finished(other)) == 4, "the other study's trials are not taken for its own"
    finished(store)  # whose driver deletes what is left over of its own
    assert len(in_optuna(other)) == 4
    drop_trial(other, 1, "")
    assert len(in_optuna(store)) == 5


def test_a_trial_that_is_dropped_while_it_waits_to_go_on_does_not_go_on(store):
    hand = Hand(store)
    cut, gone = hand.start()["number"], hand.start()["number"]
    hand.leave("paused")
    hand = Hand(store)  # a driver that has both in line
    hand.store.finish_trial(hand.token, gone, "dropped")
    hand.book.rebuild(hand.token)
    assert hand.start()["number"] == cut
    assert hand.start()["number"] == gone + 1, "another one takes its place"
    assert store.trial(gone).state == "dropped"
    assert len(store.trial(gone).attempts) == 1


def points(settings: list[dict]) -> list[tuple]:
    return sorted(tuple(value for key, value in sorted(each.items()) if key != "number") for each in settings)


def test_a_dropped_point_of_a_grid_is_tried_again_and_no_other(database):
    store = measured(database, GRID)
    first = finished(store)
    for number in (1, 4):  # the second one is what took the first one's place
        drop_trial(store, number, "")
        [instead] = finished(store)
        assert points([instead]) == points([first[1]])
    rerun_trial(store, 2)
    assert points(finished(store)) == points([first[2]])
    drop_trial(store, 2, "")
    assert points(finished(store)) == points([first[2]]), "a repetition is beside the budget"
    assert finished(store) == []


@pytest.mark.parametrize("spec", [SPEC, GRID], ids=["search", "grid"])
def test_an_archive_of_half_a_study_goes_on_with_the_other_half(tmp_path, spec):
    spec = spec.model_copy(update={"warm_starts": ({}, {"method.scale_ratio": 0.8})} if spec is SPEC else {})
    (whole, half), path = (measured(f"sqlite:///{tmp_path}/{name}.db", spec) for name in "ab"), tmp_path / "half.json"
    expected = finished(whole)
    hand = Hand(half)
    hand.finish(hand.start()["number"], 0.1)
    hand.leave("paused")
    export_study(half, path)
    there = StudyStore(f"sqlite:///{tmp_path}/there.db", import_study(f"sqlite:///{tmp_path}/there.db", path))
    went_on = finished(there)
    assert [each["number"] for each in went_on] == [1, 2, 3]
    if spec is GRID:
        assert points(went_on) == points(expected[1:])
    else:
        assert went_on[0]["method.scale_ratio"] == 0.8, "the warm start that had not begun"
        assert went_on == expected[1:]


def test_half_a_study_that_was_restored_can_be_stopped(store, tmp_path):
    hand = Hand(store)
    hand.start()
    hand.leave("paused")
    path, url = tmp_path / "half.json", f"sqlite:///{tmp_path}/there.db"
    export_study(store, path)
    there = StudyStore(url, import_study(url, path))
    assert "1 unfinished" in stop_study(there)
    assert [trial.state.name for trial in in_optuna(there)] == ["PRUNED"]


def test_a_study_whose_checkpoints_another_one_uses_is_not_deleted(store, tmp_path):
    hand = Hand(store)
    number = hand.start()["number"]
    uri = f"s3://b/studies/{store.load().slug}/trials/{number}/a000002/best.safetensors"
    store.record(hand.token, number, [record(1, 0.3)], latest=None, best={"uri": uri}, device_seconds=1.0)
    hand.leave("paused")
    export_study(store, tmp_path / "a.json")
    import_study(store.url, tmp_path / "a.json", name="twin")
    with pytest.raises(UserError, match="checkpoints of twin"):
        delete_study(store, bucket="b", tracking_uri="http://127.0.0.1:9", say=print)
    assert store.load().state == "paused"


def test_an_archive_remembers_what_was_dropped_and_what_was_run_again(store, tmp_path):
    finished(store)
    rerun_trial(store, 0)
    finished(store)
    drop_trial(store, 3, "")
    finished(store)
    export_study(store, tmp_path / "all.json")
    there = StudyStore(
        f"sqlite:///{tmp_path}/there.db", import_study(f"sqlite:///{tmp_path}/there.db", tmp_path / "all.json")
    )
    assert finished(there) == [], "a repetition is still beside the budget"
    assert Hand(there).book.mirrors()
    assert there.load().generation == store.load().generation + 1, "built once"


def test_a_study_of_the_first_schema_keeps_everything_and_goes_on(database):
    config = Config()
    config.set_main_option("script_location", str(Path(database_module.__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    engine = sa.create_engine(database)
    old = {key: value for key, value in SPEC.model_dump(mode="json").items() if key not in ("sampler", "prior")}
    study = {"name": "small", "spec": json.dumps(old), "spec_hash": "0" * 64, "desired": "run", "state": "paused",
             "created_ms": 7, "driven_seconds": 9.0, "token": 3, "baseline": json.dumps(BASELINE)}  # fmt: skip
    of = {"study": "small", "number": 0}
    trial = {"params": '{"method.scale_ratio": 0.7, "attack.eps": 0.00392156862745098}', "config": "{}"}
    rows = {
        "agft_study": study,
        "agft_trial": {**of, **trial, "state": "complete", "started_ms": 8, "ended_ms": 9},
        "agft_attempt": {**of, "token": 3, "started_ms": 8, "ended_ms": 9, "device_seconds": 1.5},
        "agft_epoch": {**of, "epoch": 1, "record": json.dumps(record(1, 0.3))},
        "agft_verdict": {**of, "epoch": 1, "decision": "continue", "reason": "first"},
    }
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        for table, row in rows.items():
            names = ", ".join(row)
            connection.execute(
                sa.text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(':' + name for name in row)})"), row
            )
    store = StudyStore(database, "small")
    assert store.create(SPEC) is False, "the same file is the same study"
    [row] = store.trials()
    assert (row.params["method.scale_ratio"], row.device_seconds, row.verdicts) == (0.7, 1.5, {1: "continue"})
    assert row.last == record(1, 0.3)
    assert [settings["number"] for settings in finished(store)] == [1, 2, 3]
    assert in_optuna(store)[0].value == pytest.approx(0.3)


def test_a_server_that_goes_away_between_two_statements_of_optunas_is_away(postgres_url: str) -> None:
    storage = optuna.storages.RDBStorage(postgres_url)
    study = optuna.create_study(storage=storage)
    study.ask()
    admin, ended = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT"), []

    def cut(connection: sa.Connection, cursor: psycopg.Cursor, statement: str, *_: object) -> None:
        if "ORDER BY trials.trial_id" in statement and not ended:
            ended.append(statement)
            end = sa.text("SELECT pg_terminate_backend(:pid, 10000)")
            with admin.connect() as other:
                assert other.execute(end, {"pid": cursor.connection.info.backend_pid}).scalar_one()

    sa.event.listen(storage.engine, "before_cursor_execute", cut)
    with pytest.raises(optuna.exceptions.StorageInternalError) as raised:
        study.get_trials()
    admin.dispose()
    assert isinstance(raised.value.__cause__, sa.exc.PendingRollbackError), "Optuna takes the first error for another"
    assert "connection" in away(raised.value)
    assert len(study.get_trials()) == 1
