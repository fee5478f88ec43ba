"""Inside an epoch: signs of life, for whoever listens, and the question whether the run is to leave; nobody has to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from trainers.schema.records import Sign, StageName

Listener = Callable[[Sign], None]
Asked = Callable[[], bool]

_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)
_asked: ContextVar[Asked] = ContextVar("asked", default=lambda: False)


class Left(Exception):
    """A run leaves inside an epoch, as it was asked to, and goes on from its newest state."""


@contextmanager
def listening(listener: Listener | None, asked: Asked = lambda: False) -> Iterator[None]:
    """Whatever begins a `Stage` inside is heard by `listener`, at every step, in its own thread; `asked` says, at any
    time, whether this process's run is to leave."""
    tokens = _listener.set(listener), _asked.set(asked)
    try:
        yield
    finally:
        _listener.reset(tokens[0])
        _asked.reset(tokens[1])


def asked() -> bool:
    """Whether this process's run is to leave; several ranks have to agree on it before one does."""
    return _asked.get()()


class Stage:
    """A piece of work of `total` images; `at(done)` after every step of it.

    The rate counts from the first step on, whose own time holds start-up and compilation.
    """

    def __init__(self, name: StageName, total: int) -> None:
        self.name, self.total, self.done = name, total, 0
        self.listener = _listener.get()
        self.first: tuple[float, int] | None = None

    def at(self, done: int) -> None:
        """So many images are done."""
        self.done = done
        if self.listener is None:
            return
        now = time.monotonic()
        rate = 0.0
        if self.first is None:
            self.first = now, done
        elif now > self.first[0]:
            rate = (done - self.first[1]) / (now - self.first[0])
        self.listener(Sign(stage=self.name, done=done, total=self.total, images_per_second=rate))

    def more(self, images: int) -> None:
        """So many images more are done."""
        self.at(self.done + images)


def every(seconds: float, listener: Listener) -> Listener:
    """Hears one sign in so many seconds, and the first one of every stage."""
    heard: dict[str, float] = {}

    def seldom(sign: Sign) -> None:
        now = time.monotonic()
        if now - heard.get(sign.stage, -seconds) >= seconds:
            heard.clear()
            heard[sign.stage] = now
            listener(sign)

    return seldom
