"""The embedded MLflow after an upgrade of its package, or beside the secrets of another home."""

from __future__ import annotations

import logging
import sqlite3
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from alembic import command
from mlflow.store.db.utils import _get_alembic_config
from mlflow.store.tracking.dbmodels.initial_models import Base as InitialBase

from infra.errors import ServiceError, UserError
from infra.stack import mlflow_server
from tests.support.services.answering import answering


def revision(path: Path) -> str:
    with sqlite3.connect(path) as connection:
        return str(connection.execute("SELECT version_num FROM alembic_version").fetchone()[0])


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """The database of an MLflow whose last migration is still to come."""
    path = tmp_path / "mlflow.db"
    engine = sa.create_engine(f"sqlite:///{path}")
    InitialBase.metadata.create_all(engine)
    config = _get_alembic_config(str(engine.url))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "heads-1")
    engine.dispose()
    return path


@pytest.mark.slow
def test_runs_of_an_older_mlflow_are_upgraded_with_a_copy_aside(older: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = revision(older)
    with caplog.at_level(logging.WARNING, "agft"):
        mlflow_server.configure(older.parent)
        mlflow_server.configure(older.parent)  # nothing is left to do
    assert revision(older) != before
    assert revision(older.with_name(f"mlflow-{before}.db")) == before
    [said] = [record.message for record in caplog.records if record.name == "agft"]
    assert f"a copy of before is {older.parent}/mlflow-{before}.db" in said


@pytest.mark.slow
def test_an_upgrade_that_fails_leaves_the_file_as_it_was(older: Path) -> None:
    before = revision(older)
    with sqlite3.connect(older) as connection:  # what the migrations change is not there
        for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if name != "alembic_version":
                connection.execute(f"DROP TABLE {name}")
    connection.close()
    content = older.read_bytes()
    with pytest.raises(ServiceError, match=r"could not upgrade .*mlflow\.db, which stays as it was"):
        mlflow_server.upgrade(older.parent)
    assert (revision(older), older.read_bytes()) == (before, content)


def test_a_new_home_and_a_file_that_is_no_database_are_left_to_mlflow(tmp_path: Path) -> None:
    mlflow_server.upgrade(tmp_path)
    (tmp_path / "mlflow.db").write_text("no database, whatever its name says, and long enough to have a header of one")
    mlflow_server.upgrade(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_users_of_other_secrets_are_told_at_once_with_a_remedy() -> None:
    told = pytest.raises(UserError, match=r"Put that secrets\.json back .* move mlflow/auth\.db")
    with answering(401) as stranger, told:
        mlflow_server.probe(urlsplit(stranger).port or 0, {"mlflow_password": "p"})
