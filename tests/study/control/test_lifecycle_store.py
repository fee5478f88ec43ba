"""Lifecycle on the real databases: dropped and repeated trials, budgets that grow, archives, a server that is away."""

from __future__ import annotations

import json
import threading
import time

import optuna
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from study.cli.main import main
from study.control.lifecycle import delete_study, drop_trial, extend_study, rerun_trial, stop_study
from study.errors import StudyFailed, UserError
from study.search.projection import delete_projection
from study.spec.files import parse_study
from study.store import database as database_module
from study.store.archive import export_study, import_study
from study.store.database import impatience, patient
from study.store.lease import LeaseHeld, owner_identity
from study.store.requests import ask, pending
from study.store.rows import Proposal
from study.store.store import DriverStore, StudyStore, study_names
from tests.support.epochs import commit, epoch_record, weights
from tests.support.hand import Hand, in_optuna, measured
from tests.support.study_files import minimal

FILE = minimal(
    search="""
  method.scale_ratio: {low: 0.2, high: 1.0}
  attack.eps: {choices: [1/255, 2/255, 4/255]}""",
    budget="{trials: 4, hours: 2}", goal='{subject_to: {clean_accuracy: ">= 0.5"}}',
)  # fmt: skip
SPEC = parse_study(FILE, source="study.yaml")


GRID = parse_study(
    FILE.replace("{low: 0.2, high: 1.0}", "{choices: [0.4, 0.8]}").replace("[1/255, 2/255, 4/255]", "[1/255, 2/255]")
    + "sampler: {name: grid}",
    source="grid.yaml",
)


@pytest.fixture
def store(database) -> StudyStore:
    return measured(database, SPEC)


def finished(store: StudyStore) -> list[dict]:
    hand = Hand(store)
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
    row = store.trial(2)
    assert (row.dropped_at, row.state_before) == (4, "complete"), "trials before it know it as it was"


def test_a_reason_may_be_any_text(store, monkeypatch):
    finished(store)
    drop_trial(store, 2, "caf\udce9\0")
    assert store.trial(2).stop_reason == "dropped: caf?\ufffd"
    monkeypatch.setenv("AGFT_STUDY_DB", store.url)
    done = CliRunner().invoke(main, ["drop", "small", "1", "--reason", "caf\udce9"])
    assert done.exit_code == 0, done.output
    assert store.trial(1).stop_reason == "dropped: caf?"
    written = next(each for each in main.commands["rollback"].params if each.name == "reason")
    assert written.callback(None, written, "caf\udce9") == "caf?"


def test_dropping_a_trial_keeps_those_that_run_and_those_that_wait(store):
    hand = Hand(store)
    first, second = hand.start(), hand.start()
    hand.finish(first["number"], 0.3)
    ask(store, "rerun", first["number"], "")
    ask(store, "drop", first["number"], "")
    assert hand.obey() == ["in line again", "dropped"]
    assert [trial.state.name for trial in in_optuna(store)] == ["FAIL", "RUNNING"]
    again = hand.start()
    assert again == {**first, "number": 2}
    hand.finish(second["number"], 0.5)
    assert [trial.state.name for trial in in_optuna(store)] == ["FAIL", "COMPLETE", "RUNNING"]


def test_half_a_drop_is_completed_by_the_next_driver(store):
    finished(store)
    hand = Hand(store)
    hand.store.finish_trial(hand.token, 2, "dropped", dropped_at=4)  # killed before Optuna's side of it
    hand.leave()
    [new] = finished(store)
    assert new["number"] == 4
    assert in_optuna(store)[2].state.name == "FAIL"
    assert optuna.get_all_study_names(store.url) == ["agft/small"]


def test_half_a_projection_is_completed_by_the_next_driver(store):
    finished(store)
    optuna.delete_study(study_name="agft/small", storage=store.url)
    half = optuna.create_study(study_name="agft/small", storage=store.url, direction="maximize")
    half.add_trial(optuna.trial.create_trial(state=optuna.trial.TrialState.RUNNING))
    assert finished(store) == []
    assert [trial.value for trial in in_optuna(store)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_a_trial_is_run_again_once_beside_the_budget(store):
    first = finished(store)
    assert "will be run again" in rerun_trial(store, 1)
    hand = Hand(store)
    hand.trials.obey(pending(store)[0])  # killed before it could say so: the next driver does it again
    hand.leave()
    [again] = finished(store)
    assert again == {**first[1], "number": 4}
    assert store.trial(4).rerun_of == 1
    assert len(store.trials()) == 5
    assert finished(store) == []


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
    first = finished(store)
    rerun_trial(store, 0)
    path = tmp_path / "small.json"
    assert export_study(store, path)["agft_trial"] == 4
    other = f"sqlite:///{tmp_path}/other.db"
    assert import_study(other, path) == "small"
    there = StudyStore(other, "small")
    assert there.trials() == store.trials()
    assert there.load().starts == store.load().starts
    assert there.load().slug == store.load().slug
    assert len(pending(there)) == 1
    hand = Hand(there)
    assert [trial.value for trial in in_optuna(there)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    extend_study(there, trials=1, hours=0, gpu_hours=0)
    again, new = hand.run_all()
    assert again == {**first[0], "number": 4}
    assert new["number"] == 5, "the warm starts are not given again"
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
    delete_projection(store)
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
    assert store.start_trial(token, Proposal(0, {"x": 1}), {}).params == {"x": 1}
    assert time.monotonic() - before > 1.0


def test_patience_has_an_end_that_is_named(monkeypatch):
    monkeypatch.setattr(database_module, "PATIENCE_SECONDS", 0.5)

    @patient
    def away() -> None:
        raise sa.exc.OperationalError("SELECT 1", {}, Exception("no route"))

    with pytest.raises(StudyFailed, match="no route"):
        away()


@pytest.mark.parametrize("read", ["load", "trials"])
def test_a_driver_waits_with_what_it_reads_and_a_terminal_does_not(tmp_path, read):
    url = f"sqlite:///{tmp_path}/studies.db"
    StudyStore(url, SPEC.name).create(SPEC)
    left: list[str] = []

    def refuse(connection, cursor, statement, *_):
        if left:
            raise sa.exc.OperationalError(statement, {}, Exception(left.pop()))

    sa.event.listen(StudyStore(url, SPEC.name).engine, "before_cursor_execute", refuse)
    left.append("the server restarts")
    with pytest.raises(sa.exc.OperationalError):
        getattr(StudyStore(url, SPEC.name), read)()
    left.append("the server restarts")
    assert getattr(DriverStore(url, SPEC.name), read)() is not None
    assert left == []


def test_a_connection_to_postgresql_does_not_wait_for_ever_but_as_its_address_says():
    plain = sa.make_url("postgresql+psycopg://agft@db/agft")
    assert impatience(plain)["tcp_user_timeout"] == 20_000
    assert "connect_timeout" not in impatience(plain.update_query_dict({"connect_timeout": "60"}))
    assert impatience(sa.make_url("sqlite:////tmp/x.db")) == {}
    assert impatience(plain)["prepare_threshold"] is None, "a pooler's connections do not know what was prepared"
    assert "prepare_threshold" not in impatience(sa.make_url("postgresql+psycopg2://agft@db/agft"))


def test_a_call_that_hung_for_long_before_it_failed_is_still_made_again(monkeypatch):
    monkeypatch.setattr(database_module, "PATIENCE_SECONDS", 0.2)
    calls: list[int] = []

    @patient
    def hang() -> str:
        calls.append(1)
        if len(calls) == 1:
            time.sleep(0.5)
            raise sa.exc.OperationalError("SELECT 1", {}, Exception("timed out"))
        return "there"

    assert hang() == "there"


def test_a_study_whose_name_begins_like_anothers_is_its_own(store):
    finished(store)
    other = measured(store.url, SPEC.model_copy(update={"name": "small.1"}))
    assert len(finished(other)) == 4, "the other study's trials are not taken for its own"
    drop_trial(store, 0, "")
    assert len(in_optuna(other)) == 4
    drop_trial(other, 1, "")
    assert len(in_optuna(store)) == 4


def test_a_trial_that_is_dropped_while_it_waits_to_go_on_does_not_go_on(store):
    hand = Hand(store)
    cut, gone = hand.start()["number"], hand.start()["number"]
    hand.leave("paused")
    hand = Hand(store)  # a driver that has both in line
    ask(store, "drop", gone, "")
    hand.obey()
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
    commit(store, hand.token, number, epoch_record(), best=weights(uri))
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
    assert [trial.state.name for trial in in_optuna(there)] == [trial.state.name for trial in in_optuna(store)]
