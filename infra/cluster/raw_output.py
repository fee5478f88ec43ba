"""What Ray itself prints goes to a file, so that a terminal shows our sentences.

Dumps of its C++, its loggers' tracebacks, the last lines of a dead node's log.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from infra.errors import while_full, while_unread
from infra.services import default_home

_apart = False


def raw_log() -> Path:
    """The file of this process."""
    return default_home(os.environ) / "logs" / f"ray-{os.getpid()}.log"


def note(text: str) -> Path:
    """Add to the file (mode 0600) if its disk has room; its path, to be named in a message."""
    path = raw_log()
    with while_full():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')}\n{text}\n")
    return path


@contextmanager
def apart() -> Iterator[None]:
    """Inside, everything that Ray prints goes to the file. What is written to `sys.stderr` by Python shows as before,
    if the stream is taken from there inside this block. An empty file is removed."""
    global _apart
    if _apart:
        yield
        return
    path = note("")
    empty = path.stat().st_size
    file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115  # closed below
    terminal, stream = os.dup(2), sys.stderr
    shown = os.fdopen(os.dup(terminal), "w", encoding="utf-8", buffering=1)
    with while_unread(stream):
        stream.flush()
    os.dup2(file.fileno(), 2)
    if stream is sys.__stderr__:
        sys.stderr = shown
    _apart = True
    give_back = _loggers(file)
    try:
        yield
    finally:
        _apart = False
        give_back()
        if sys.stderr is shown:
            sys.stderr = stream
        os.dup2(terminal, 2)
        os.close(terminal)
        with while_unread(shown):
            shown.close()
        with while_full():
            file.close()
        if path.stat().st_size == empty:
            path.unlink()


class _Quiet(logging.StreamHandler[Any]):
    """What a full disk does not take is no error."""

    def handleError(self, record: logging.LogRecord) -> None: ...


def _print(file: Any, data: Mapping[str, Any], ignore_prefix: object) -> None:
    with while_full():
        file.write("\n".join(data["lines"]) + "\n")


def _loggers(file: Any) -> Any:
    """Point Ray's loggers, and the thread that prints what its nodes report, to the file; returns what undoes it."""
    import ray._private.worker as worker

    logger, before, prints = logging.getLogger("ray"), logging.getLogger("ray").handlers[:], worker.print_to_stdstream
    logger.handlers = [_Quiet(file)]
    logger.handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(filename)s:%(lineno)s %(message)s"))
    worker.print_to_stdstream = partial(_print, file)

    def undo() -> None:
        logger.handlers, worker.print_to_stdstream = before, prints

    return undo
