"""The `agft` command as a person runs it: in a home of its own, with real services, as real processes."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

AGFT = [sys.executable, "-c", "from study.cli.main import main; main()"]
FAIR = {"RAY_worker_niceness": "0"}  # by default Ray's workers wait (nice 15) for whatever else this machine tests
IN_BACKGROUND = ["sh", "-c", "trap '' INT; exec \"$@\"", "-"]  # how a script's `&` starts a command: deaf to Ctrl-C


@dataclass
class Run:
    """A home with its own services, and what the commands in it printed."""

    home: Path
    file: Path
    printed: dict[str, str] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """Nothing of the caller's services; everything of this home."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "MLFLOW_", "AGFT_", "RAY_"))}
        return {**clean, **FAIR, "AGFT_HOME": str(self.home), "PYTHONUNBUFFERED": "1"}

    def agft(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command to its end."""
        done = subprocess.run(
            [*AGFT, *arguments], env=self.environment(), capture_output=True, text=True, check=False, timeout=1800
        )
        if check and done.returncode != 0:
            raise AssertionError(f"agft {arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, *arguments: str, before: Sequence[str] = ()) -> subprocess.Popen[str]:
        """Start a command in a session of its own, its output in one pipe; `before`: by whom, like `IN_BACKGROUND`."""
        return subprocess.Popen(
            [*before, *AGFT, *arguments], env=self.environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True,
        )  # fmt: skip

    def services(self) -> dict[str, str]:
        """Addresses and credentials of the embedded services."""
        from infra.stack.stack import up

        return up(self.home).environment()

    def trials(self, name: str) -> list[dict[str, Any]]:
        """The trials as `agft status --json` gives them."""
        [study] = json.loads(self.agft("status", name, "--json").stdout)
        return list(study["trials"])

    def processes(self) -> list[psutil.Process]:
        """Every process that was started on behalf of this home."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("AGFT_HOME") == str(self.home) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def listening(self) -> list[str]:
        """`address:port process` of every socket that a process of this home listens on now.

        An IPv4 address that an IPv6 socket is bound to (`::ffff:127.0.0.1`, as gRPC does) is written as what it is.
        """
        found = []
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())[:400]
                for socket in process.net_connections(kind="inet"):
                    if socket.status == psutil.CONN_LISTEN:
                        found.append(f"{socket.laddr.ip.removeprefix('::ffff:')}:{socket.laddr.port} {line}")
        return found


@contextlib.contextmanager
def cleared(run: Run) -> Iterator[Run]:
    """The run, of which nothing is left running afterwards."""
    try:
        yield run
    finally:
        run.agft("stack", "down", check=False)
        for process in run.processes():
            process.kill()


def read_until(process: subprocess.Popen[str], wanted: Callable[[str], bool], *, seconds: float = 900) -> str:
    """Lines of a running command up to the first that is `wanted`."""
    assert process.stdout is not None
    lines: list[str] = []
    deadline = time.monotonic() + seconds
    for line in process.stdout:
        lines.append(line)
        if wanted(line):
            return "".join(lines)
        assert time.monotonic() < deadline, "".join(lines)
    raise AssertionError(f"the command ended first:\n{''.join(lines)}")


def wait_until_gone(alive: Callable[[], list[psutil.Process]], *, seconds: float = 60) -> list[psutil.Process]:
    """Processes that are left after a while."""
    deadline = time.monotonic() + seconds
    while (left := alive()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return left
