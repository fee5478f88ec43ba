"""How far an evaluation is, on standard error: results alone go to standard output."""

from __future__ import annotations

import sys
import time
from typing import Any

from study.console import Clock

__all__ = ["Progress"]

PAUSE_SECONDS = 5.0  # between two lines, but for the first and the last


class Progress(Clock):
    """Lines that begin with the time since it was made; `advance` adds what is left, by cost."""

    def __init__(self) -> None:
        super().__init__()
        self._shown = self._begun = 0.0
        self._cost = self._done = 0.0
        self._units = self._finished = 0

    def __call__(self, text: str) -> None:
        seconds = int(time.monotonic() - self.started)
        print(f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}", file=sys.stderr, flush=True)

    def begin(self, cost: float, units: int) -> None:
        """So much is to do from now on."""
        self._begun, self._cost, self._done = time.monotonic(), cost, 0.0
        self._units, self._finished, self._shown = units, 0, 0.0

    def advance(self, name: str, cost: float, verdicts: Any) -> None:
        """Something is finished; `verdicts`: of a unit."""
        self._done += cost
        self._finished += cost > 0
        now = time.monotonic()
        if cost > 0 and (now - self._shown >= PAUSE_SECONDS or self._finished == self._units):
            self._shown = now
            left = (now - self._begun) / self._done * (self._cost - self._done)
            right, robust = int(verdicts.right.sum()), (~verdicts.fooled).sum(1).tolist()
            self(
                f"{self._finished}/{self._units} units, {_duration(left)} left  {name}: {len(verdicts.index)} images, "
                f"{right} right, {' / '.join(map(str, robust))} robust"
            )


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"about {seconds:.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
