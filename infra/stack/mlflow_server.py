"""The embedded MLflow server: one worker, basic authentication, artifacts proxied into the embedded S3.

Its two databases are SQLite files in its folder, or of the embedded PostgreSQL.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import re
import shutil
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from infra.errors import ServiceError, UserError
from infra.services import DEFAULT_BUCKET, DEFAULT_REGION
from infra.stack.processes import own_environment, write_private

log = logging.getLogger("agft")
USERNAME = "agft"
RUNS = "mlflow.db"  # in the server's folder
SECRETS = ("mlflow_password", "mlflow_server_key")
AUTH_CACHE_SECONDS = 300  # without it each request costs a PBKDF2
DROPPED_PREFIXES = ("PG", "MLFLOW_", "_MLFLOW_", "AWS_", "RAY_", "GUNICORN_", "UVICORN_")


def configure(folder: Path, users: str = "sqlite:///auth.db") -> None:
    """Write the authentication settings (mode 0600); `users` is the database of users, without a password. Runs that an
    older MLflow kept in SQLite are brought to what this one needs.

    Passwords go through the environment only.
    """
    if importlib.util.find_spec("flask_wtf") is None:
        raise UserError("the embedded MLflow server needs its authentication app: pip install 'mlflow[auth]'")
    # the database paths are relative to the server's folder: a home may have any characters in its name
    text = f"""[mlflow]
default_permission = NO_PERMISSIONS
grant_default_workspace_access = false
database_uri = {users}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = {AUTH_CACHE_SECONDS}
"""
    write_private(folder / "basic_auth.ini", text)
    if users.startswith("sqlite"):
        upgrade(folder)


def upgrade(folder: Path) -> None:
    """Bring `mlflow.db` to this MLflow's schema, with a copy of before aside: the server refuses an older one, and
    upgrades none itself. `ServiceError` when that fails; the file is as before then."""
    path, there = folder / RUNS, _revision(folder / RUNS)
    if there is None or not _has_next(there):
        return
    kept = folder / f"mlflow-{there}.db"
    shutil.copy2(path, kept)
    log.warning("MLflow is %s now: its database %s is upgraded, a copy of before is %s", version(), path, kept)
    line = (sys.executable, "-m", "mlflow", "db", "upgrade", f"sqlite:///{RUNS}")
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    variables = own_environment(*DROPPED_PREFIXES) | quiet
    done = subprocess.run(line, cwd=folder, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        shutil.copy2(kept, path)
        last = (done.stderr or done.stdout).strip().splitlines()[-1:]
        raise ServiceError(f"MLflow {version()} could not upgrade {path}, which stays as it was: {' '.join(last)}")


def _has_next(revision: str) -> bool:
    """Whether a migration of this MLflow follows: read from their files, which alembic would import, and MLflow with
    them, for a second at every start."""
    spec = importlib.util.find_spec("mlflow")
    if spec is None or spec.origin is None:
        return False
    follows = re.compile(rf"^down_revision\b.*['\"]{re.escape(revision)}['\"]", re.MULTILINE)
    files = (Path(spec.origin).parent / "store" / "db_migrations" / "versions").glob("*.py")
    return any(follows.search(file.read_text(encoding="utf-8")) for file in files)


def _revision(path: Path) -> str | None:
    """Of the schema in MLflow's file, whose own log it takes in first; None where there is none, or no such table."""
    if not path.exists():
        return None
    with contextlib.closing(sqlite3.connect(path)) as connection:
        try:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
        except sqlite3.DatabaseError:  # MLflow says what is wrong with it
            return None
    return str(row[0]) if row else None


def command(port: int, *, bind: str = "127.0.0.1", runs: str = "sqlite:///mlflow.db") -> list[str]:
    """The command line, to be run in the server's folder; it holds no secret. `runs`: database, without a password."""
    return [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", bind, "--port", str(port), "--workers", "1"),
        *("--app-name", "basic-auth", "--allowed-hosts", f"{bind}:*,127.0.0.1:*,localhost:*"),
        *("--backend-store-uri", runs),
        *("--artifacts-destination", f"s3://{DEFAULT_BUCKET}/mlflow"),
        *("--uvicorn-opts", "--no-access-log"),
    ]


def environment(folder: Path, secrets: Mapping[str, str], s3_endpoint: str) -> dict[str, str]:
    """Variables of the server process: this process's own without foreign service settings, plus the secrets."""
    return own_environment(*DROPPED_PREFIXES) | {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "basic_auth.ini"),
        "MLFLOW_AUTH_ADMIN_USERNAME": USERNAME,
        "MLFLOW_AUTH_ADMIN_PASSWORD": secrets["mlflow_password"],
        "MLFLOW_FLASK_SERVER_SECRET_KEY": secrets["mlflow_server_key"],
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # seven idle processes otherwise
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "true",
        "AWS_ENDPOINT_URL": s3_endpoint,
        "AWS_REGION": DEFAULT_REGION,
        "AWS_DEFAULT_REGION": DEFAULT_REGION,
        "AWS_ACCESS_KEY_ID": secrets["access_key"],
        "AWS_SECRET_ACCESS_KEY": secrets["secret_key"],
        "AWS_EC2_METADATA_DISABLED": "true",
        "PGPASSWORD": secrets["postgres_password"],  # unused with SQLite
        "PYTHONWARNINGS": "ignore",
    }


def address(port: int, bind: str = "127.0.0.1") -> str:
    """The tracking URI; loopback by number, since `localhost` may resolve to IPv6 first."""
    return f"http://{bind}:{port}"


def version() -> str:
    """Of the installed MLflow."""
    return importlib.metadata.version("mlflow")


def probe(port: int, secrets: Mapping[str, str], bind: str = "127.0.0.1") -> None:
    """One authorised request that reads the database; `ServiceError` with the reason when it fails, `UserError` where
    the server knows another password than the kept one, which no waiting changes."""
    token = base64.b64encode(f"{USERNAME}:{secrets['mlflow_password']}".encode()).decode()
    request = urllib.request.Request(
        f"{address(port, bind)}/api/2.0/mlflow/experiments/search?max_results=1",
        headers={"Authorization": f"Basic {token}"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=10) as response:
            json.load(response)
    except urllib.error.HTTPError as error:
        if error.code == 401:
            raise UserError(
                f"MLflow at {address(port, bind)} refuses the password in secrets.json (401): its users were made with "
                "another one. Put that secrets.json back into the home; or `agft stack down`, and move mlflow/auth.db "
                "there away, so that users are made anew (runs stay)"
            ) from error
        raise ServiceError(f"MLflow at {address(port, bind)}: HTTP {error.code}") from error
    except (OSError, ValueError) as error:
        raise ServiceError(f"MLflow at {address(port, bind)}: {error}") from error
