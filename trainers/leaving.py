"""SIGTERM, which a machine that is taken away sends its processes first: a run at work then leaves, with a state kept.

Imports neither torch nor Ray.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_at_work, _told = threading.Event(), threading.Event()


def heed() -> None:
    """From now on a first SIGTERM asks the run that is at work in this process to leave (`told`). A second one, and one
    while there is none, does what it did before. Called in the main thread, where alone Python handles signals."""
    before = signal.getsignal(signal.SIGTERM)

    def handle(number: int, frame: FrameType | None) -> None:
        if _at_work.is_set() and not _told.is_set():
            _told.set()
        elif callable(before):
            before(number, frame)
        else:
            raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, handle)


@contextmanager
def at_work() -> Iterator[None]:
    """A run is at work in this process."""
    _at_work.set()
    try:
        yield
    finally:
        _at_work.clear()


def told() -> bool:
    """Whether this process is to end."""
    return _told.is_set()
