"""Real databases for the store's suite: SQLite, and PostgreSQL from the test environment's wheel or the system."""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.stack import postgres_programs


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server of our own on loopback, or of another account's where we are root; yields its address."""
    programs, account = postgres_programs.programs(), postgres_programs.account()
    ours = postgres_programs.as_account(account)
    with tempfile.TemporaryDirectory(prefix="tests-", dir=postgres_programs.open_folder()) as folder:
        password = secrets.token_hex(16)
        secret = Path(folder) / "password"
        secret.write_text(password)
        for path in (folder, secret):
            if account is not None:
                os.chown(path, *account)
        data = f"{folder}/data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        init = [f"{programs}/initdb", "-D", data, "-U", "agft", "-A", "scram-sha-256", f"--pwfile={secret}", "-N"]
        subprocess.run(init, check=True, capture_output=True, cwd=folder, **ours)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories= -c fsync=off"
        control = [f"{programs}/pg_ctl", "-D", data, "-w"]
        started = [*control, "-o", options, "-l", f"{folder}/log", "start"]
        subprocess.run(started, check=True, stdout=subprocess.DEVNULL, cwd=folder, **ours)
        try:
            yield f"postgresql+psycopg://agft:{password}@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run(
                [*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder, **ours
            )
