"""The study database goes away under a running study, and comes back."""

from __future__ import annotations

import signal
import time

import pytest
import sqlalchemy as sa

from tests.faults.test_failpoints import TRIALS, Study, check_whole
from tests.support.services.clusters import two_nodes
from tests.support.services.real_run import read_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
AWAY_SECONDS = 20


@pytest.fixture(scope="module")
def cluster(stack):
    with two_nodes(stack, head_cpus=2, worker_cpus=0) as nodes:
        yield nodes


def send_away(database: str) -> sa.Engine:
    """Refuse new connections and end the ones that are there, as a server that fails over does."""
    admin = sa.create_engine(sa.make_url(database).set(database="template1"), isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(sa.text("ALTER DATABASE postgres WITH ALLOW_CONNECTIONS false"))
        connection.execute(sa.text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'postgres'"))
    return admin


def come_back(admin: sa.Engine) -> None:
    with admin.connect() as connection:
        connection.execute(sa.text("ALTER DATABASE postgres WITH ALLOW_CONNECTIONS true"))
    admin.dispose()


def test_a_study_waits_for_its_database_and_loses_nothing(cluster, monkeypatch):
    study = Study(cluster, "patient")
    driver = study.start(scale=4.0)
    read_until(driver, lambda line: "1 of 5 trials done" in line)
    admin = send_away(cluster.database)
    time.sleep(AWAY_SECONDS)
    come_back(admin)
    assert driver.poll() is None, "it was still at work"
    text, _ = driver.communicate(timeout=240)
    assert driver.returncode == 0, text
    assert "the study database does not answer" in text
    check_whole(study, monkeypatch)
    assert all(len(row.attempts) == 1 for row in study.store.trials())
    assert len(study.store.trials()) == TRIALS


def test_a_driver_that_is_cut_off_for_too_long_leaves_and_another_goes_on(cluster, monkeypatch):
    study = Study(cluster, "cut-off")
    driver = study.start(scale=4.0)
    read_until(driver, lambda line: "1 of 5 trials done" in line)
    admin = send_away(cluster.database)
    text, _ = driver.communicate(timeout=200)
    come_back(admin)
    assert driver.returncode not in (0, -signal.SIGKILL), text
    code, text = study.drive()
    assert code == 0, text
    check_whole(study, monkeypatch)
