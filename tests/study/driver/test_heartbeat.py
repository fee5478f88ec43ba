"""The thread that keeps a lease: a driver whose heart has stopped, for whatever reason, knows that it has."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from study.driver import heartbeat
from study.driver.heartbeat import Heartbeat
from study.store import tables
from study.store.lease import owner_identity
from study.store.store import StudyStore
from tests.support.studies import synthetic_study


@pytest.fixture
def beating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[StudyStore, Heartbeat]:
    monkeypatch.setattr(heartbeat, "HEARTBEAT_SECONDS", 0.05)
    store = synthetic_study(tmp_path, trials=1, finished=True)
    thread = Heartbeat(store, store.acquire(owner_identity()))
    thread.start()
    return store, thread


def wait_for(found: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_it_keeps_the_lease_until_it_is_stopped(beating: tuple[StudyStore, Heartbeat]) -> None:
    store, thread = beating
    driven = store.load().driven_seconds
    wait_for(lambda: store.load().driven_seconds > driven)
    thread.stop()
    assert not thread.lost


def test_another_driver_ends_it(beating: tuple[StudyStore, Heartbeat]) -> None:
    store, thread = beating
    with store.engine.begin() as connection:
        connection.execute(sa.update(tables.studies).values(token=tables.studies.c.token + 1))
    wait_for(lambda: thread.lost)
    thread.join()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_that_nobody_expects_ends_it_as_well(beating: tuple[StudyStore, Heartbeat]) -> None:
    store, thread = beating
    with store.engine.begin() as connection:
        connection.execute(sa.update(tables.studies).values(spec="{}"))
    wait_for(lambda: thread.lost)
    thread.join()
