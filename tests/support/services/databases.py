"""Real databases for the store's suite: SQLite, and PostgreSQL where Debian's package is installed."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def postgres_programs() -> Path | None:
    """Folder of initdb and pg_ctl, newest version first."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), reverse=True)
    if found:
        return found[0].parent
    here = shutil.which("initdb")
    return Path(here).parent if here else None


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server of our own on loopback; yields its address. It refuses to run as root, so it does not."""
    programs = postgres_programs()
    assert programs is not None
    user = "postgres" if os.geteuid() == 0 else getpass.getuser()
    prefix = ["runuser", "-u", user, "--"] if os.geteuid() == 0 else []
    with tempfile.TemporaryDirectory(prefix="agft-postgres-") as folder:
        password = secrets.token_hex(16)
        secret = Path(folder) / "password"
        secret.write_text(password)
        if prefix:
            shutil.chown(folder, user)
            shutil.chown(secret, user)
        data = f"{folder}/data"
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        init = [f"{programs}/initdb", "-D", data, "-U", "agft", "-A", "scram-sha-256", f"--pwfile={secret}", "-N"]
        subprocess.run([*prefix, *init], check=True, capture_output=True, cwd=folder)
        options = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
        control = [*prefix, f"{programs}/pg_ctl", "-D", data, "-w"]
        started = [*control, "-o", options, "-l", f"{folder}/log", "start"]
        subprocess.run(started, check=True, stdout=subprocess.DEVNULL, cwd=folder)
        try:
            yield f"postgresql+psycopg://agft:{password}@127.0.0.1:{port}/postgres"
        finally:
            subprocess.run([*control, "-m", "immediate", "stop"], check=True, stdout=subprocess.DEVNULL, cwd=folder)
