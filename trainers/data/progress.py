"""How far a long piece of work is: a line every few seconds, with the rate and the time that is left."""

from __future__ import annotations

import time
from collections.abc import Callable

QUIET_SECONDS = 5.0

Say = Callable[[str], None]


def images_done(done: int, total: int, rate: float) -> str:
    return f"{done:,} of {total:,} images, {rate:,.0f} a second"


def bytes_done(done: int, total: int, rate: float) -> str:
    of = f" of {total / 1e9:.2f}" if total else ""
    return f"{done / 1e9:.2f}{of} GB, {rate / 1e6:,.1f} MB a second"


class Progress:
    """Called with how much is done; says `NAME: ... , about 3 min left` now and then.

    The rate is that since the first call with something new: neither the start of other processes nor what an earlier
    run has done (`kept`) counts. A `total` of 0 is not known.
    """

    def __init__(self, name: str, total: int, say: Say, shown: Callable[[int, int, float], str] = images_done) -> None:
        self.name, self.total, self.say, self.shown = name, total, say, shown
        self.done = self.kept = 0
        self.said = time.monotonic()
        self.first: tuple[float, int] | None = None  # when, and how much was done by this run

    def __call__(self, done: int, kept: int = 0) -> None:
        """So much is done, of which an earlier run did `kept`."""
        self.done, self.kept = done, kept
        now, new = time.monotonic(), done - kept
        if self.first is None and new:
            self.first = (now, new)
        if self.first is None or now - self.said < QUIET_SECONDS or new == self.first[1]:
            return
        self.said = now
        rate = (new - self.first[1]) / (now - self.first[0])
        left = f", about {_long((self.total - done) / rate)} left" if self.total else ""
        self.say(f"{self.name}: {self.shown(done, self.total, rate)}{left}")


def _long(seconds: float) -> str:
    for limit, unit, name in ((120, 1, "s"), (7200, 60, "min")):
        if seconds < limit:
            return f"{seconds / unit:.0f} {name}"
    return f"{seconds / 3600:.1f} h"
