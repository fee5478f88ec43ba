"""Whether the study database can be used: reached, written, of this version's schema. Changes nothing in it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from infra.checks.diagnosis import Check, Diagnosis, Failed, check, failed, ok
from infra.checks.s3 import clock_finding
from infra.errors import ServiceError, UserError
from study.store.database import (  # fmt: skip
    MIGRATIONS,
    UTF8_REMEDY,
    database_url,
    encoding_of,
    impatience,
    now,
    optunas_revision,
    said,
    scripts,
    shown,
)

DATABASE, SCHEMA = "study database", "database schema"
TIMEOUT_SECONDS, DATABASE_SECONDS = 5, 25.0  # of one connection, of the whole check
# What the driver's text says, the cause in our words, and the remedy
ENDED = "drivers of the older version must have ended"
DAMAGED = "restore a backup: agft restore-backup"
CAUSES = (
    ("not a database", "is damaged", DAMAGED),
    ("malformed", "is damaged", DAMAGED),
    ("disk i/o error", "cannot be read or written: its disk fails", "look at the disk; keep a copy of the file first"),
    (
        "password authentication failed",
        "refuses the user or password",
        "correct the user and password in AGFT_STUDY_DB",
    ),
    ("does not exist", "has no such database or user", "create it (createdb), or correct AGFT_STUDY_DB"),
    (
        "refused",
        "is not reachable: nothing listens there",
        "start PostgreSQL, or correct host and port in AGFT_STUDY_DB",
    ),
    ("timeout", "is not reachable: no answer", "open the firewall to it, or correct the host in AGFT_STUDY_DB"),
    ("resolve", "is not reachable: its name is not known", "correct the host in AGFT_STUDY_DB"),
    ("no pg_hba.conf entry", "does not let this machine in", "add a `host` line with scram-sha-256 to its pg_hba.conf"),
    ("readonly", "cannot be written", "change the owner or rights of the file"),
    ("permission denied", "gives the user too few rights", "grant the user all rights on the database and its schema"),
    ("locked", "is locked by another process", "end what holds it"),
    ("disk", "has no space left", "free space on its disk"),
)


def database_check(home: Path) -> Check:
    """The check of the study database that this process's environment, or the home, names."""

    @check
    def looked() -> list[Diagnosis]:
        try:
            return check_database(database_url(home))
        except (ServiceError, UserError) as error:  # the embedded PostgreSQL does not run; no address of a database
            text, _, remedy = str(error).partition(": ")
            raise Failed(DATABASE, text, remedy) from None

    return looked


@check
def check_database(url: str) -> Iterator[Diagnosis]:
    """Connect within 5 s, compare schemas, try a write that touches no row, and compare clocks."""
    try:
        parsed = sa.make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            detail = f"{parsed.get_backend_name()!r} is not supported"
            raise Failed(DATABASE, detail, "use sqlite or postgresql+psycopg")
        address = shown(parsed)
        if parsed.get_backend_name() == "sqlite":
            path = Path(parsed.database or "")
            if not path.exists() or not path.stat().st_size:
                yield ok(DATABASE, f"{address}: made by the first study")
                return
            options: dict[str, object] = {"timeout": TIMEOUT_SECONDS}
        else:
            options = {**impatience(parsed), "connect_timeout": TIMEOUT_SECONDS}
        engine = sa.create_engine(parsed, connect_args=options, poolclass=sa.pool.NullPool)
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        remedy = "like postgresql+psycopg://USER:PASSWORD@HOST/DATABASE"
        raise Failed(DATABASE, f"AGFT_STUDY_DB is not a usable address: {error}", remedy) from None
    try:
        with engine.connect() as connection:
            yield from _ask(connection, address)
    except sa.exc.DBAPIError as error:
        raise _cause(address, said(error)) from None
    finally:
        engine.dispose()


def _ask(connection: sa.Connection, address: str) -> list[Diagnosis]:
    if connection.dialect.name == "postgresql":
        connection.execute(sa.text(f"SET statement_timeout = {TIMEOUT_SECONDS * 1000}"))
    before = time.time()
    theirs = now(connection)
    ahead = theirs - (before + time.time()) / 2
    tables = set(sa.inspect(connection).get_table_names())
    if connection.dialect.name == "postgresql":
        _check_postgresql(connection, address, tables)
    schema = _schema(connection, tables)
    if schema.state == "ok" and "agft_study" in tables:  # no row has an empty name: only the right is tried
        connection.execute(sa.text("UPDATE agft_study SET state = state WHERE name = ''"))
    connection.rollback()
    clock = clock_finding("the database", ahead, precision=0.5)
    return [ok(DATABASE, f"{address}: reached, may be written"), schema, clock]


def _check_postgresql(connection: sa.Connection, address: str, tables: set[str]) -> None:
    """`Failed` for an encoding that lacks letters, and where tables are missing that the user may not make."""
    if (encoding := encoding_of(connection)) != "UTF8":
        raise Failed(DATABASE, f"{address} has the encoding {encoding}", UTF8_REMEDY)
    if {"agft_schema", "alembic_version"} <= tables:
        return
    asked = "SELECT current_user, current_schema(), has_schema_privilege(current_schema(), 'CREATE')"
    user, schema, may_create = connection.execute(sa.text(asked)).one()
    if schema is None:
        raise Failed(DATABASE, f"{address}: no schema of its search_path is there", "create it, or correct search_path")
    if not may_create:  # of `public`, PostgreSQL gives it to nobody since version 15
        detail = f"{address}: user {user!r} may make no tables in its schema {schema!r}"
        raise Failed(DATABASE, detail, f'as its owner: GRANT CREATE ON SCHEMA "{schema}" TO "{user}"')


def _schema(connection: sa.Connection, tables: set[str]) -> Diagnosis:
    """Ours and Optuna's against what this version knows."""
    if problem := _optunas(connection):
        return problem
    if "agft_schema" not in tables:
        return ok(SCHEMA, "none yet: made by the first study")
    ours = scripts(MIGRATIONS)
    there = connection.execute(sa.text("SELECT version_num FROM agft_schema")).scalars().first()
    head = ours.get_current_head()
    if there == head:
        return ok(SCHEMA, f"{head}, as this version needs it")
    if there in {script.revision for script in ours.walk_revisions()}:
        return failed(SCHEMA, f"old: agft's is {there}, this version needs {head}",
                      f"`agft backup FILE`, then `agft status` migrates it; {ENDED}")  # fmt: skip
    return failed(SCHEMA, f"newer than this version of agft: {there}, known up to {head}",
                  "install here the version of agft that the others use")  # fmt: skip


def _optunas(connection: sa.Connection) -> Diagnosis | None:
    there, problem = optunas_revision(connection)
    if problem == "old":
        return failed(SCHEMA, f"old: optuna's is {there}", f"run `optuna storage upgrade`; {ENDED}")
    if problem:
        detail = f"alembic_version is {there}: of another program, such as MLflow, or of a newer optuna"
        return failed(SCHEMA, detail, "give AGFT_STUDY_DB a database of its own, or install the optuna of the others")
    return None


def _cause(address: str, text: str) -> Failed:
    lowered = text.lower()
    for word, cause, remedy in CAUSES:
        if word in lowered:
            return Failed(DATABASE, f"{address} {cause} ({text[:160]})", remedy)
    return Failed(DATABASE, f"{address}: {text[:250]}", "see the database's log")
