"""The database behind a study: address, engine, migrations and its clock."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from alembic.util.exc import CommandError
from sqlalchemy import event
from sqlalchemy.exc import InterfaceError, OperationalError

from infra.errors import FULL
from study.errors import StudyFailed, UserError

MIGRATIONS = Path(__file__).parent / "migrations"

log = logging.getLogger("agft")
P = ParamSpec("P")
R = TypeVar("R")
AWAY = (OperationalError, InterfaceError)  # no answer, locked, full: what may be over in a while
# PostgreSQL's own word for the same: a replica that is not the first yet, or is no more; a transaction that was ended
# for taking too long. psycopg calls them internal errors.
READ_ONLY, AWAY_STATES, IN_FAILED_TRANSACTION = "25006", ("25006", "25P03", "25P04"), "25P02"
PATIENCE_SECONDS = 60.0  # a driver that was cut off, and replaced, must not hold its workers for longer
UTF8_REMEDY = "make one with every letter: createdb --encoding UTF8 --template template0 NAME"
MIGRATION_LOCK = 0x41474654  # a number of our own
QUOTED = re.compile(r"\n(?:LINE \d+:|\[SQL)")  # where an error's text begins to quote the statement
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.25, 5.0
# Of libpq: text as we have it, whatever the shell or the server prefers; and a server that went without a word is
# noticed in half a minute, where the system's own limits are 15 min and 2 h.
LIBPQ = {"connect_timeout": 10, "tcp_user_timeout": 20_000, "keepalives_idle": 10, "keepalives_interval": 5,
         "keepalives_count": 3, "client_encoding": "utf8"}  # fmt: skip


def database_url(home: Path) -> str:
    """`AGFT_STUDY_DB` from the environment (it may hold a password), the embedded PostgreSQL, or SQLite in `home`."""
    if given := os.environ.get("AGFT_STUDY_DB"):
        return _anywhere(given)
    return _embedded(home) or f"sqlite:///{home / 'studies.db'}"


def _anywhere(url: str) -> str:
    """The address of a SQLite file wherever a process looks from; `UserError` for one in memory, gone with each."""
    if not url.startswith("sqlite"):
        return url
    parsed = address_of(url)
    if not parsed.database or ":memory:" in parsed.database or "memory" in parsed.query.get("mode", ""):
        raise UserError(f"AGFT_STUDY_DB = {url}: a database in memory ends with its process; expected sqlite:////FILE")
    if parsed.database.startswith("file:"):
        return url
    return parsed.set(database=os.path.abspath(parsed.database)).render_as_string(hide_password=False)


def _embedded(home: Path) -> str | None:
    if not os.path.exists(home / "stack.json"):
        return None  # never chosen; spares every command the import
    from infra.stack.embedded import database_address

    return database_address(home)


def address_of(url: str) -> sa.URL:
    """The parts of a database's address; `UserError`, which shows nothing of it, for what is none."""
    try:
        parsed = sa.make_url(url)
    except (sa.exc.ArgumentError, ValueError):
        expected = "expected postgresql+psycopg://USER:PASSWORD@HOST:PORT/DATABASE or sqlite:////FILE"
        raise UserError(f"AGFT_STUDY_DB: not a database address; {expected}") from None
    if "@" in (parsed.host or ""):  # the rest of a password, which every message about the host would show
        raise UserError("AGFT_STUDY_DB: write an @ in a user's name or password as %40")
    return parsed


def shown(address: sa.URL) -> str:
    """An address for people: without its password, wherever in it that stands."""
    query = {name: "***" if "password" in name.lower() else value for name, value in address.query.items()}
    return address.set(query=query).render_as_string(hide_password=True).replace("%2A", "*")


@cache
def engine_for(url: str) -> sa.Engine:
    """An engine whose schema is up to date; `UserError` for an address that cannot work."""
    parsed = address_of(url)
    try:
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise UserError(f"AGFT_STUDY_DB: {parsed.get_backend_name()!r} is not supported; use sqlite or postgresql")
        if parsed.get_backend_name() == "sqlite" and parsed.database:
            _make_file(Path(parsed.database), shown(parsed))
        engine = sa.create_engine(parsed, pool_pre_ping=True, connect_args=impatience(parsed))
    except (sa.exc.ArgumentError, ModuleNotFoundError) as error:
        raise UserError(f"AGFT_STUDY_DB: not a usable database address: {error}") from None
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_up_sqlite)
    leave_replicas(engine)
    try:
        _check_options(engine, shown(parsed))
        _migrate(engine)
    except sa.exc.DBAPIError as error:
        raise StudyFailed(f"the study database {shown(parsed)} cannot be used: {said(error)}") from None
    return engine


def _make_file(path: Path, address: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        kind = StudyFailed if error.errno in FULL else UserError
        reason = "it is a file" if isinstance(error, FileExistsError) else error.strerror  # `mkdir`'s only one
        raise kind(f"the study database {address} cannot be made: {error.filename}: {reason}") from None


def _check_options(engine: sa.Engine, address: str) -> None:
    """`UserError` for an address with options that the driver does not know, and for an encoding that lacks letters."""
    try:
        connection = engine.connect()
    except (sa.exc.ProgrammingError, TypeError, ValueError) as error:
        raise UserError(f"AGFT_STUDY_DB: {address}: not a usable database address: {said(error)}") from None
    with connection:
        if engine.dialect.name == "postgresql" and (encoding := encoding_of(connection)) != "UTF8":
            raise UserError(f"AGFT_STUDY_DB: {address} has the encoding {encoding}; {UTF8_REMEDY}")


def encoding_of(connection: sa.Connection) -> str:
    """In which PostgreSQL keeps this database's text."""
    return str(connection.exec_driver_sql("SHOW server_encoding").scalar_one())


def impatience(address: sa.URL) -> dict[str, Any]:
    """Arguments of a connection that is not to wait for ever; what the address says itself holds."""
    if address.get_backend_name() != "postgresql" or not address.get_driver_name().startswith("psycopg"):
        return {}
    limits: dict[str, Any] = {name: value for name, value in LIBPQ.items() if name not in address.query}
    if address.get_driver_name() == "psycopg":  # a pooler's next connection (pgbouncer) lacks what it prepares
        limits["prepare_threshold"] = None
    return limits


def leave_replicas(engine: sa.Engine) -> None:
    """Let a server that may only be read cost the engine its connections: it answers every one of them, for ever."""

    def look(context: sa.engine.ExceptionContext) -> None:
        if _state(context.original_exception) == READ_ONLY:
            context.is_disconnect = True

    event.listen(engine, "handle_error", look)


def _set_up_sqlite(connection: Any, _record: Any) -> None:
    # WAL: another terminal reads while the driver writes. Python's own implicit BEGIN is switched off, so that
    # `transaction` can begin with the write lock and never has to upgrade a read lock.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "busy_timeout=60000", "foreign_keys=ON", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}")


def _migrate(engine: sa.Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.set_main_option("path_separator", "os")
    with transaction(engine) as connection, warnings.catch_warnings():
        if engine.dialect.name == "postgresql":  # a terminal and a driver may be the first ones together
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise StudyFailed(f"the study database is newer than this version of agft: {error}") from None


def scripts(folder: Path) -> ScriptDirectory:
    """The migrations in a folder."""
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")
    return ScriptDirectory.from_config(config)


def optunas_revision(connection: sa.Connection) -> tuple[str, str]:
    """(the revision of Optuna's tables, why it does not fit); ('', '') where there are none, or nobody's yet.

    Others keep their revision in a table of the same name, MLflow among them.
    """
    spec = importlib.util.find_spec("optuna")
    if spec is None or spec.origin is None or not sa.inspect(connection).has_table("alembic_version"):
        return "", ""
    there = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalars().first()
    known = scripts(Path(spec.origin).parent / "storages" / "_rdb" / "alembic")
    if there is None or there == known.get_current_head():
        return there or "", ""
    if there in {script.revision for script in known.walk_revisions()}:
        return there, "old"
    return there, "foreign"


@contextmanager
def transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A write transaction: serialised on SQLite from its first statement, so that read-then-write is safe."""
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        with connection.begin() if not connection.in_transaction() else connection.get_transaction():  # type: ignore
            yield connection


def now(connection: sa.Connection) -> float:
    """Seconds since 1970 on the database's clock, the one clock that all drivers share."""
    if connection.dialect.name == "sqlite":
        statement = "SELECT (julianday('now') - 2440587.5) * 86400.0"
    else:
        statement = "SELECT extract(epoch FROM clock_timestamp())"
    return float(connection.execute(sa.text(statement)).scalar_one())


def away(error: Exception) -> str:
    """Why the database does not answer, if that is what the error (or, in Optuna's, its cause) says; else ''."""
    cause = _first(error)
    if isinstance(cause, AWAY) or (isinstance(cause, sa.exc.DBAPIError) and _state(cause) in AWAY_STATES):
        return said(error)
    return ""


def said(error: Exception) -> str:
    """What the database said, in one line, without the statement that it said it about."""
    cause = _first(error) or error
    text = str(getattr(cause, "orig", None) or (cause.args[0] if cause.args else cause))
    return " ".join(QUOTED.split(text)[0].split())[:300] or type(cause).__name__


def _first(error: Exception) -> BaseException | None:
    """SQLAlchemy's error behind this one (Optuna's has it as its cause) that others only followed from."""
    cause: BaseException | None = error if isinstance(error, sa.exc.SQLAlchemyError) else error.__cause__
    while isinstance(cause, sa.exc.PendingRollbackError) or _state(cause) == IN_FAILED_TRANSACTION:
        cause = cause and cause.__context__  # Optuna asked again in the transaction that was cut off
    return cause


def _state(error: BaseException | None) -> str:
    """PostgreSQL's code of an error, of psycopg's or as SQLAlchemy has it; '' where there is none."""
    return getattr(getattr(error, "orig", error), "sqlstate", None) or ""


def patient(call: Callable[P, R]) -> Callable[P, R]:
    """Repeat a call that can be repeated while the database is away; `StudyFailed` after `PATIENCE_SECONDS`.

    A connection that is lost in a commit leaves open whether it happened: only calls that change nothing when they are
    made twice may be wrapped.
    """

    @wraps(call)
    def persist(*args: P.args, **kwargs: P.kwargs) -> R:
        deadline, pause = 0.0, FIRST_PAUSE_SECONDS
        while True:
            try:
                return call(*args, **kwargs)
            except Exception as error:
                reason = away(error)
                if not reason:
                    raise
                clock = time.monotonic()
                deadline = deadline or clock + PATIENCE_SECONDS  # a call may have hung for long before it failed
                if clock > deadline:
                    raise StudyFailed(
                        f"the study database has not answered for {PATIENCE_SECONDS:.0f} s: {reason}"
                    ) from error
                if pause == FIRST_PAUSE_SECONDS:
                    log.warning("the study database does not answer (%s); trying again", reason)
                time.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)

    return persist
