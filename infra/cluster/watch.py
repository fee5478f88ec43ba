"""Whether the cluster still lives: a thread that asks, and that makes the main thread leave when it does not.

A call of Ray waits for ever for a node that is gone, and Ray itself ends a process that has lost its head for a minute,
in the middle of whatever it does. Neither gives anything back.
"""

from __future__ import annotations

import faulthandler
import importlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ASK_SECONDS = 3.0
ANSWER_SECONDS = 5.0
SILENCE_SECONDS = 30.0  # no answer for so long: no head
ALIVE = 0  # a node's state, as Ray's messages have it
LEAVE_SECONDS = 12.0  # for the main thread, before the process is ended under it
WORD_SECONDS = 5.0


class _Watch(threading.Thread):
    """Asks the head at `address` for the node that this process is on, which no other node can stand in for."""

    def __init__(self, address: str, node: str) -> None:
        super().__init__(name="agft-ray-watch", daemon=True)
        self.address, self.node = address, node
        self.lost = ""
        self.ended = threading.Event()
        self.last_words: list[Callable[[str], None]] = []

    def run(self) -> None:
        ask, failing_since, failures = _asker(self.address), 0.0, 0
        while not self.ended.wait(ASK_SECONDS):
            asked = time.monotonic()
            living = ask()
            if living is not None and self.node not in living:
                self._leave(f"the Ray node that this process is on has died (cluster {self.address})")
                return
            # Failures are counted, too: a process that was stopped for a while finds the clock far ahead.
            failing_since, failures = (failing_since if failures else asked), 0 if living is not None else failures + 1
            if failures > 3 and time.monotonic() - failing_since >= SILENCE_SECONDS:
                self._leave(f"the head of the Ray cluster at {self.address} has not answered for {SILENCE_SECONDS:g} s")
                return

    def _leave(self, reason: str) -> None:
        if self.ended.is_set():
            return
        self.lost = reason
        if not self.last_words:
            return
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        if self.ended.wait(LEAVE_SECONDS) or not self.last_words:
            return
        faulthandler.dump_traceback(file=2)  # where it hangs, to Ray's own log (`raw_output`)
        for word in self.last_words:
            speaking = threading.Thread(target=word, args=(reason,), daemon=True)
            speaking.start()
            speaking.join(WORD_SECONDS)
        os._exit(1)


def _asker(address: str) -> Callable[[], set[str] | None]:
    """What asks the head for its living nodes; it gives None where that does not answer."""
    raylet: Any = importlib.import_module("ray._raylet")
    from ray.exceptions import RayError

    clients: list[Any] = []

    def ask() -> set[str] | None:
        try:
            clients[:] = clients or [raylet.GcsClient(address=address)]
            found = clients[0].get_all_node_info(timeout=ANSWER_SECONDS)
        except (RayError, OSError, RuntimeError):
            return None
        return {node.hex() for node, info in found.items() if info.state == ALIVE}

    return ask


def answers(address: str) -> bool:
    """Whether a head answers there."""
    return _asker(address)() is not None


_watch: _Watch | None = None


def start(address: str, node: str) -> None:
    """Watch the cluster that this process is connected to."""
    global _watch
    stop()
    _watch = _Watch(address, node)
    _watch.start()


def stop() -> None:
    """The connection ends."""
    global _watch
    if _watch is not None:
        _watch.ended.set()
    _watch = None


def lost() -> str:
    """Why the cluster is lost to this process; empty while it is not."""
    return _watch.lost if _watch else ""


@contextmanager
def left_when_lost(last_word: Callable[[str], None]) -> Iterator[None]:
    """Inside, a lost cluster interrupts the main thread: `KeyboardInterrupt`, whatever call of Ray it hangs in.

    Where that does not help (Ray's view of the cluster's resources hears no signal), `last_word(reason)` is called on
    another thread, before those of blocks inside this one, and the process ends with 1. Nothing of this where another
    thread than the main one is here.
    """
    watched = _watch
    if watched is None or threading.current_thread() is not threading.main_thread():
        yield
        return
    watched.last_words.append(last_word)
    try:
        yield
    finally:
        watched.last_words.remove(last_word)
