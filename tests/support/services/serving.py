"""`mlflow models serve` as a person starts it, on loopback, and what it answers."""

from __future__ import annotations

import importlib.metadata as metadata
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def scripts() -> Path:
    """Where the programs of the installed packages are: `mlflow models serve` starts uvicorn."""
    [program] = [file for file in metadata.files("uvicorn") or () if file.name == "uvicorn" and "bin" in file.parts]
    return Path(str(program.locate())).resolve().parent


@contextmanager
def served(model: str, environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """A model's address or folder behind a free port of loopback, ready; where it answers. `AssertionError` with the
    end of its log if it ends before it is."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {**environment, "PATH": f"{scripts()}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    with open(log, "w") as output:
        process = subprocess.Popen(
            command,
            env=found,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(log.read_text()[-4000:]) from None
                time.sleep(1)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 15)
            process.wait(timeout=60)


def post(address: str, body: dict[str, Any]) -> Any:
    request = urllib.request.Request(address, json.dumps(body).encode(), headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.load(answer)["predictions"]
