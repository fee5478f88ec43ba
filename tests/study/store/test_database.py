"""What becomes of a study database that cannot be used, for now or for good."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import optuna
import psycopg.errors
import pytest
import sqlalchemy as sa
from click.testing import CliRunner

from infra.checks.diagnosis import Diagnosis
from study.cli.main import main
from study.doctor.database import _cause, check_database
from study.errors import UserError
from study.search.projection import check_projection, optuna_storage
from study.spec.files import parse_study
from study.store.database import away, database_url, engine_for, patient, shown
from study.store.lease import owner_identity
from study.store.rows import Proposal
from study.store.store import StudyStore
from tests.support.study_files import minimal

SPEC = parse_study(minimal(), source="study.yaml")


def only(found: list[Diagnosis], check: str) -> str:
    [row] = [row for row in found if row.check == check and row.state != "ok"]
    return f"{row.detail}: {row.remedy}"


@pytest.fixture
def on_postgresql(postgres_url: str) -> StudyStore:
    """A study in a database of its own."""
    name = f"away{time.monotonic_ns()}"
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text(f"CREATE DATABASE {name}"))
    admin.dispose()
    store = StudyStore(sa.make_url(postgres_url).set(database=name).render_as_string(hide_password=False), SPEC.name)
    store.create(SPEC)
    return store


def fail_over(store: StudyStore, admin_url: str, *, read_only: bool) -> None:
    """What the next connections find; those that are there are cut off where the server becomes one to read only."""
    admin, name = sa.create_engine(admin_url, isolation_level="AUTOCOMMIT"), store.engine.url.database
    with admin.connect() as connection:
        connection.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_read_only = {read_only}"))
        if read_only:
            cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'"
            connection.execute(sa.text(cut))
    admin.dispose()


def test_a_driver_waits_while_its_address_leads_to_a_replica(on_postgresql, postgres_url):
    store = on_postgresql
    token = store.acquire(owner_identity())
    fail_over(store, postgres_url, read_only=True)
    threading.Timer(0.6, fail_over, [store, postgres_url], {"read_only": False}).start()
    before = time.monotonic()
    assert store.start_trial(token, Proposal(0, {"x": 1}), {}).number == 0
    assert time.monotonic() - before > 0.5


def test_optuna_leaves_a_replica_as_well(on_postgresql, postgres_url):
    storage = optuna_storage(on_postgresql)
    fail_over(on_postgresql, postgres_url, read_only=True)
    threading.Timer(0.6, fail_over, [on_postgresql, postgres_url], {"read_only": False}).start()
    create = patient(lambda: storage.create_new_study([], "projected"))
    assert create() is not None


def test_a_transaction_that_the_server_ended_for_taking_too_long_is_an_outage(on_postgresql):
    with on_postgresql.engine.connect() as connection:
        connection.execute(sa.text("SET idle_in_transaction_session_timeout = 50"))
        time.sleep(0.3)
        with pytest.raises(sa.exc.DBAPIError) as ended:
            connection.execute(sa.text("SELECT 1"))
    assert away(ended.value)


def test_what_is_asked_in_a_failed_transaction_is_told_by_what_failed():
    def asked_again(first: Exception) -> sa.exc.DBAPIError:
        second = sa.exc.InternalError("SELECT", {}, psycopg.errors.InFailedSqlTransaction("aborted"))
        second.__context__ = sa.exc.InternalError("UPDATE", {}, first)
        return second

    assert away(asked_again(psycopg.errors.ReadOnlySqlTransaction("cannot execute UPDATE"))) == "cannot execute UPDATE"
    assert away(asked_again(psycopg.errors.UndefinedTable("no table"))) == ""


# --- what a command answers ------------------------------------------------------------------------------------------


def asked(url: str, monkeypatch: pytest.MonkeyPatch, *, code: int) -> str:
    """What `agft status` says about a database that it cannot use."""
    monkeypatch.setenv("AGFT_STUDY_DB", url)
    done = CliRunner().invoke(main, ["status"])
    assert done.exit_code == code, done.output
    assert "[SQL" not in done.output
    assert "LINE 1" not in done.output
    assert "hunter2" not in done.output
    [line] = done.output.splitlines()
    return line


def test_a_file_that_cannot_be_made_and_one_that_is_no_database_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("text that is no database, and longer than the header that SQLite looks for first")
    at = f"sqlite:///{tmp_path}/file"
    assert f"cannot be made: {tmp_path}/file: it is a file" in asked(f"{at}/studies.db", monkeypatch, code=2)
    assert f"{at} cannot be used: file is not a database" in asked(at, monkeypatch, code=1)
    monkeypatch.delenv("AGFT_STUDY_DB")
    monkeypatch.setenv("AGFT_HOME", str(tmp_path / "file" / "home"))
    done = CliRunner().invoke(main, ["status"])
    assert (done.exit_code, "/file/home: Not a directory" in done.output) == (2, True)


def test_a_database_in_memory_is_refused_and_a_relative_file_is_the_same_from_everywhere(tmp_path, monkeypatch):
    for url in ("sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"):
        assert "in memory" in asked(url, monkeypatch, code=2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGFT_STUDY_DB", "sqlite:///some/studies.db")
    assert database_url(tmp_path) == f"sqlite:///{tmp_path}/some/studies.db"


def test_an_option_that_the_driver_does_not_know_is_named_and_no_password_shown(monkeypatch):
    at = "postgresql+psycopg://127.0.0.1:1/x?user=u&password=hunter2"
    assert 'invalid connection option "sslmod"' in asked(f"{at}&sslmod=require", monkeypatch, code=2)
    assert "password=***" in asked(at, monkeypatch, code=1)
    assert "hunter2" not in only(check_database(at), "study database")
    assert shown(sa.make_url("postgresql+psycopg://u:secret@h/d?sslpassword=hunter2")) == (
        "postgresql+psycopg://u:***@h/d?sslpassword=***"
    )


def database_with(postgres_url: str, *statements: str, options: str = "", user: str = "") -> str:
    """A new database after these statements, each with its name for {name}; its address for the user."""
    name = f"odd{time.monotonic_ns()}"
    admin = sa.create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for statement in (f"CREATE DATABASE {name} {options}", *statements):
            connection.execute(sa.text(statement.format(name=name)))
    admin.dispose()
    url = sa.make_url(postgres_url).set(database=name)
    return (url.set(username=user.format(name=name), password="p") if user else url).render_as_string(False)


def test_a_database_without_every_letter_is_refused(postgres_url, monkeypatch):
    letters = "ENCODING SQL_ASCII TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'"
    url = database_with(postgres_url, options=letters)
    assert "has the encoding SQL_ASCII" in asked(url, monkeypatch, code=2)
    assert "has the encoding SQL_ASCII" in only(check_database(url), "study database")


def test_a_user_who_may_make_no_tables_and_a_schema_that_is_not_there_are_named(postgres_url, monkeypatch):
    url = database_with(postgres_url, "CREATE USER {name} PASSWORD 'p'", user="{name}")
    assert "permission denied for schema public" in asked(url, monkeypatch, code=1)
    assert "may make no tables in its schema 'public'" in only(check_database(url), "study database")
    url = database_with(postgres_url) + "?options=-csearch_path%3Dnowhere"
    assert "no schema has been selected" in asked(url, monkeypatch, code=1)
    assert "no schema of its search_path" in only(check_database(url), "study database")


def test_a_database_that_can_only_be_read_is_one_message(postgres_url, monkeypatch):
    url = database_with(postgres_url, "ALTER DATABASE {name} SET default_transaction_read_only = on")
    assert "read-only transaction" in asked(url, monkeypatch, code=1)


def test_a_damaged_file_and_a_disk_that_fails_are_not_taken_for_a_full_one(tmp_path):
    path = tmp_path / "studies.db"
    StudyStore(f"sqlite:///{path}", SPEC.name).create(SPEC)
    engine_for(f"sqlite:///{path}").dispose()
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))
    assert "is damaged" in only(check_database(f"sqlite:///{path}"), "study database")
    assert "its disk fails" in str(_cause("here", "disk I/O error"))
    assert "has no space left" in str(_cause("here", "database or disk is full"))


def test_what_a_command_cannot_ask_the_database_is_one_line(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/studies.db"
    StudyStore(url, SPEC.name).create(SPEC)
    with engine_for(url).begin() as connection:
        connection.execute(sa.text("DROP TABLE agft_trial"))
    assert asked(url, monkeypatch, code=1) == (
        "failed: the study database cannot do what was asked: no such table: agft_trial"
    )


def test_a_status_that_is_watched_goes_on_while_the_database_is_away(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/studies.db"
    StudyStore(url, SPEC.name).create(SPEC)
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        sa.event.listen(engine_for(url), "before_cursor_execute", refuse) if len(looks) == 1 else None
        sa.event.remove(engine_for(url), "before_cursor_execute", refuse) if len(looks) == 2 else None
        if len(looks) == 3:
            raise KeyboardInterrupt

    def refuse(connection: object, cursor: object, statement: str, *_: object) -> None:
        raise sa.exc.OperationalError(statement, {}, Exception("the server restarts"))

    monkeypatch.setattr("study.cli.watch.time.sleep", sleep)
    monkeypatch.setenv("AGFT_STUDY_DB", url)
    done = CliRunner().invoke(main, ["status", "--watch"])
    assert (done.exit_code, len(looks)) == (0, 3)
    assert "does not answer (the server restarts); trying again" in done.output


# --- a database that others use as well ------------------------------------------------------------------------------


def test_a_database_of_mlflows_is_refused_before_anything_is_started(tmp_path, monkeypatch):
    url = f"sqlite:///{tmp_path}/mlflow.db"
    with sa.create_engine(url).begin() as connection:
        connection.execute(sa.text("CREATE TABLE alembic_version (version_num VARCHAR(32))"))
        connection.execute(sa.text("INSERT INTO alembic_version VALUES ('0584bdc529eb')"))
    monkeypatch.setenv("AGFT_STUDY_DB", url)
    monkeypatch.setenv("AGFT_HOME", str(tmp_path / "home"))
    assert "of another program, such as MLflow" in only(check_database(url), "database schema")
    done = CliRunner().invoke(main, ["run", str(Path(__file__).parents[3] / "study/recipes/demo.yaml")])
    assert done.exit_code == 2
    assert "give AGFT_STUDY_DB a database of its own" in done.output
    assert "starting the embedded services" not in done.output
    assert "trials" not in sa.inspect(engine_for(url)).get_table_names(), "nor are tables of Optuna made there"


def test_optunas_tables_of_another_version_are_refused_with_what_helps(tmp_path):
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", SPEC.name)
    store.create(SPEC)
    check_projection(store)
    for revision, helps in (("v2.6.0.a", "optuna storage upgrade"), ("v9.0.0.a", "database of its own")):
        with store.engine.begin() as connection:
            connection.execute(sa.text(f"UPDATE alembic_version SET version_num = '{revision}'"))
        with pytest.raises(UserError, match=helps):
            check_projection(store)


def test_somebodys_optuna_study_of_the_same_name_and_other_directions_is_refused(tmp_path):
    store = StudyStore(f"sqlite:///{tmp_path}/studies.db", SPEC.name)
    store.create(SPEC)
    name = store.load().optuna_name
    optuna.create_study(study_name=name, storage=store.url, directions=["minimize", "maximize"])
    with pytest.raises(UserError, match=f"another study '{name}' in Optuna's tables, to minimize, maximize"):
        check_projection(store)
