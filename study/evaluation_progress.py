"""How far an evaluation is, on standard error: results alone go to standard output."""

from __future__ import annotations

import sys
import time

from study.console import Clock

__all__ = ["Progress"]

PAUSE_SECONDS = 5.0  # between two lines, but for the first and the last


class Progress(Clock):
    """Lines that begin with the time since it was made; `advance` adds how far we are and the time left."""

    def __init__(self) -> None:
        super().__init__()
        self.begin(0, 0.0)

    def __call__(self, text: str) -> None:
        seconds = int(time.monotonic() - self.started)
        print(f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}", file=sys.stderr, flush=True)

    def begin(self, number: int, share: float) -> None:
        """So many things are to do from now on, of so much cost together."""
        self._begun, self._shown = time.monotonic(), 0.0
        self._number, self._finished = number, 0
        self._share, self._done = share, 0.0

    def advance(self, share: float, text: str) -> None:
        """One of them is finished; not every one is shown."""
        now = time.monotonic()
        self._finished += 1
        self._done += share
        if now - self._shown >= PAUSE_SECONDS or self._finished == self._number:
            self._shown = now
            left = (now - self._begun) / self._done * (self._share - self._done)
            ending = f", {_duration(left)} left" if self._finished < self._number else ""
            self(f"{self._finished}/{self._number}{ending}  {text}")


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
