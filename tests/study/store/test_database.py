"""What becomes of a study database that cannot be used, for now or for good."""

from __future__ import annotations

import threading
import time

import psycopg.errors
import pytest
import sqlalchemy as sa

from study.search.projection import optuna_storage
from study.spec.files import parse_study
from study.store.database import away, patient
from study.store.lease import owner_identity
from study.store.rows import Proposal
from study.store.store import StudyStore
from tests.support.study_files import minimal

SPEC = parse_study(minimal(), source="study.yaml")


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
