"""Long-lived background processes of this machine: start detached, recognise, end, and find them free ports."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from infra.errors import ServiceError
from infra.process import began, lives

# Every process of a service inherits this variable, so they are found even when the state file is lost.
MARKER = "AGFT_STACK_SERVICE"
PORTS = range(20000, 32000)  # below the kernel's range for outgoing connections, so that remembered ports stay free
LOG_LIMIT_BYTES = 16_000_000
TAIL_BYTES = 20_000

Started = tuple[int, str]  # process id, and when it `began`: together they are never reused


def kept_secret(path: Path) -> str:
    """A random token, made once and kept in a file of mode 0600."""
    if not path.exists():
        write_private(path, secrets.token_hex(32))
    return path.read_text().strip()


def write_private(path: Path, data: bytes | str) -> None:
    """Replace `path` atomically with `data`, readable by this user only; folders are made with mode 0700."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data.encode() if isinstance(data, str) else data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def kept_state(path: Path) -> dict[str, Any]:
    """A state file's content; a lost or damaged one is empty, since processes are found without."""
    try:
        content = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


@contextlib.contextmanager
def exclusive(path: Path, *, timeout_seconds: float = 400.0) -> Iterator[None]:
    """Hold the lock file `path`; `ServiceError` if another process keeps it longer than the time-out."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_seconds
    with open(path, "a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ServiceError(f"{path} has been locked for {timeout_seconds:.0f} s") from None
                time.sleep(0.1)
        yield


def free_ports(count: int, *, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports of `host` that nobody listens on now."""
    found: list[int] = []
    for port in random.sample(PORTS, len(PORTS)):
        if len(found) == count:
            return found
        if ports_free([port], host=host):
            found.append(port)
    raise ServiceError(f"fewer than {count} free ports between {PORTS.start} and {PORTS.stop} on {host}")


def ports_free(ports: Sequence[int], *, patience_seconds: float = 0.0, host: str = "127.0.0.1") -> bool:
    """Whether each of `ports` is free at 127.0.0.1 and `host`, now or within the patience (after a kill)."""
    deadline = time.monotonic() + patience_seconds
    while not all(_port_free(port, each) for port in ports for each in {"127.0.0.1", host}):
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)
    return True


def _port_free(port: int, host: str) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def bound_logs(folder: Path, *, limit_bytes: int = LOG_LIMIT_BYTES) -> None:
    """Move the content of every `*.log` in `folder` that is larger than the limit to `*.log.1`, replacing that.

    Whoever writes keeps its file: it appends, so it goes on at the new end. A line that is written between the copy
    and the cut is lost.
    """
    for log in folder.glob("*.log"):
        if log.stat().st_size > limit_bytes:
            older = log.with_suffix(".log.1")
            older.touch(mode=0o600)
            shutil.copyfile(log, older)
            os.truncate(log, 0)


def spawn(
    command: Sequence[str],
    *,
    mark: str,
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    account: tuple[int, int] | None = None,
) -> Started:
    """Start `command` in its own session, so that it outlives us, with output appended to `log` (mode 0600).

    `account`: numbers of the user and the group that it runs as, if not ours.
    """
    for directory in (folder, log.parent):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    bound_logs(log.parent)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            list(command),
            env={**environment, MARKER: mark},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=0o077,
            user=account[0] if account else None,
            group=account[1] if account else None,
            extra_groups=[] if account else None,
        )
    finally:
        os.close(descriptor)
    return process.pid, began(process.pid)


def own_environment(*dropped: str) -> dict[str, str]:
    """This process's variables for a service of ours, which talks to nobody but services of ours: without those that
    begin with one of `dropped`, and without proxies."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(dropped) and not name.lower().endswith("_proxy")
    }
    return kept | {"NO_PROXY": "*", "no_proxy": "*"}


def alive(started: Started | None) -> bool:
    """Whether that very process still runs (a zombie does not)."""
    return started is not None and lives(*started)


def members(mark: str) -> list[psutil.Process]:
    """All live processes that were started under `mark`, with their descendants, whatever became of their parents."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            continue  # gone meanwhile, or another user's: not ours either way
    return found


def terminate(mark: str, *, grace_seconds: float, first: signal.Signals = signal.SIGTERM) -> int:
    """End every process of `mark`: by `first`, then KILL after the grace period. Returns how many there were.

    Raises `ServiceError` when one survives KILL for 10 s (stuck in the kernel).
    """
    ended = {process.pid for process in members(mark)}
    _signal_all(members(mark), first)
    _wait(members(mark), grace_seconds)
    deadline = time.monotonic() + 10
    while left := members(mark):
        if time.monotonic() > deadline:
            raise ServiceError(f"processes survive SIGKILL: {', '.join(str(process.pid) for process in left)}")
        _signal_all(left, signal.SIGKILL)
        _wait(left, 2)
    return len(ended)


def wait_gone(mark: str, seconds: float) -> bool:
    """Whether no process of `mark` is left, waiting at most so long."""
    deadline = time.monotonic() + seconds
    while members(mark):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _signal_all(processes: Sequence[psutil.Process], what: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(what)


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    psutil.wait_procs(processes, timeout=seconds)  # also reaps those that are our children


def memory_bytes(processes: Sequence[psutil.Process]) -> int:
    """Resident memory of `processes`; shared pages count once for each."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            total += process.memory_info().rss
    return total


def unix_sockets(processes: Sequence[psutil.Process]) -> list[Path]:
    """Absolute paths of the Unix sockets that `processes` have bound."""
    found: list[Path] = []
    for process in processes:
        with contextlib.suppress(psutil.Error):
            names = [str(connection.laddr) for connection in process.net_connections(kind="unix")]
            found += [Path(name) for name in names if name.startswith("/")]
    return found


def tail(log: Path, *, lines: int = 15) -> str:
    """The last `lines` lines of `log`, indented, or a note that there are none."""
    if not log.exists():
        return f"  (no log at {log})"
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:]) or "  (the log is empty)"
