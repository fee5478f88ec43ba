"""The embedded PostgreSQL, instead of SQLite for studies and MLflow: passwords by SCRAM, no socket.

Where we are root (a container), it runs as another account, who cannot enter our home; its folder then lies below
`/var/lib/agft-postgres`, named after the home (`postgres_programs` says who and why).

Its password is in `secrets.json` and in the environment of those who connect (`PGPASSWORD`), never in an address or an
argument.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from infra.errors import ServiceError, UserError
from infra.stack.postgres_programs import (
    ROOTS_FOLDER,
    Account,
    account,
    as_account,
    installed,
    open_folder,
    programs,
    version_of,
)
from infra.stack.processes import write_private

SECRETS = ("postgres_password",)
USER = "agft"
DATABASES = ("agft", "mlflow", "mlflow_auth")
MAX_CONNECTIONS = 200
LEAVE_SECONDS = 20.0
TIMEOUT_SECONDS = 5


def check(folder: Path) -> None:
    """`UserError` or `ServiceError` with the remedy where the cluster in `folder` cannot run, or a new one there."""
    try:
        import psycopg  # noqa: F401
    except ImportError:
        raise UserError("--postgres: needs psycopg: pip install 'agft-study[postgres]'") from None
    programs(folder)


def folder_of(home: Path) -> Path:
    """Where the server's files are: `HOME/postgres`, or root's place for it."""
    if os.geteuid() != 0:
        return home / "postgres"
    return ROOTS_FOLDER / f"{home.name.strip('.')}-{hashlib.sha256(str(home).encode()).hexdigest()[:10]}"


def version(folder: Path) -> str:
    """`18.6`, of the server that runs the cluster in `folder`."""
    return version_of(installed(folder))


def configure(folder: Path, secrets: Mapping[str, str], bind: str) -> None:
    """Make the cluster if there is none; write who may connect. Waits until a killed server's processes have left.

    Raises `ServiceError` when the files are of another major version, or `initdb` fails.
    """
    runner, data = account(folder), folder / "data"
    open_folder()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if runner:
        os.chown(folder, *runner)
    if not (data / "PG_VERSION").exists():
        _initialise(data, secrets["postgres_password"], runner)
    # No socket and no other way in: a database, our user, a password.
    hosts = ["127.0.0.1/32"] if bind == "127.0.0.1" else ["0.0.0.0/0", "::/0"]
    rules = "".join(f"host {','.join((*DATABASES, 'postgres'))} {USER} {host} scram-sha-256\n" for host in hosts)
    (data / "pg_hba.conf").write_text(rules)
    _wait_until_left(data)


def _initialise(data: Path, password: str, runner: Account | None) -> None:
    part = data.with_name("data.part")  # a cluster appears whole or not at all
    shutil.rmtree(part, ignore_errors=True)
    secret = data.with_name("password")  # gone before the server starts
    options = ["-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}", "-E", "UTF8", "--locale=C", "-D", str(part)]
    try:
        write_private(secret, password + "\n")
        if runner:
            os.chown(secret, *runner)
        done = subprocess.run(
            [str(programs(data.parent) / "initdb"), *options], capture_output=True, text=True, check=False,
            cwd=data.parent, env=environment(), umask=0o077, **as_account(runner),
        )  # fmt: skip
    finally:
        secret.unlink(missing_ok=True)
    if done.returncode != 0:
        raise ServiceError(f"initdb in {data.parent}: {done.stderr.strip()[-500:]}")
    part.rename(data)


def _wait_until_left(data: Path) -> None:
    """Children of a killed server hold its memory until they notice; its lock file stays."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while any(_works_in(process, data) for process in psutil.process_iter()):
        if time.monotonic() > deadline:
            raise ServiceError(f"processes of an earlier PostgreSQL still work in {data}")
        time.sleep(0.2)
    lock = data / "postmaster.pid"
    if lock.exists() and _ended(int(lock.read_text().split()[0])):
        lock.unlink()  # the server would take a process that nobody has waited for for a live one


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _works_in(process: psutil.Process, data: Path) -> bool:
    with contextlib.suppress(psutil.Error, OSError):
        return process.cwd() == str(data)
    return False


def command(folder: Path, port: int, bind: str) -> list[str]:
    """The command line; it holds no secret. Other machines may come where `bind` is not loopback."""
    settings = {
        "listen_addresses": bind,
        "port": port,
        "unix_socket_directories": "",
        "password_encryption": "scram-sha-256",
        "max_connections": MAX_CONNECTIONS,
        "log_connections": "off",
        "log_statement": "none",
        "log_min_error_statement": "panic",  # a statement may hold what nobody else should read
        "log_timezone": "UTC",
    }
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    return [str(programs(folder) / "postgres"), "-D", str(folder / "data"), *options]


def environment() -> dict[str, str]:
    """Variables of the server: few, and none of ours."""
    return {"PATH": os.environ.get("PATH", ""), "LC_ALL": "C"}


def address(port: int, bind: str, database: str, *, password: str = "") -> str:
    """SQLAlchemy's address of a database; without the password for those who have it in `PGPASSWORD`."""
    return f"postgresql+psycopg://{USER}{f':{password}' if password else ''}@{bind}:{port}/{database}"


def probe(folder: Path, port: int, secrets: Mapping[str, str], bind: str, *, create: bool) -> None:
    """Connect to the study database with the kept password; with `create`, make the databases that are missing.

    Raises `ServiceError` with the reason, and `UserError` for a password that the files in `folder` do not know: root's
    lie outside of the home, and stay when somebody removes that.
    """
    import psycopg
    from psycopg import sql

    def connect(database: str) -> psycopg.Connection[tuple[object, ...]]:
        return psycopg.connect(
            host=bind, port=port, user=USER, password=secrets["postgres_password"], dbname=database,
            connect_timeout=TIMEOUT_SECONDS, autocommit=True, sslmode="disable",
        )  # fmt: skip

    try:
        if create:
            with connect("postgres") as connection:
                there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
                for name in DATABASES:
                    if name not in there:
                        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        with connect(DATABASES[0]) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        if "password authentication failed" in str(error):
            raise UserError(
                f"{folder}: PostgreSQL's files are of an earlier home, and {USER}'s password there is not that of this "
                "home's secrets.json; bring that file back, or remove the folder and its studies with it"
            ) from error
        raise ServiceError(f"PostgreSQL at {bind}:{port}: {' '.join(str(error).split())}") from error
