"""What a person reads: lines of progress with the time, and tables."""

from __future__ import annotations

import sys
import time

from rich.console import Console


class Clock:
    """Prints lines that begin with the time since it was made. `clock("...")`.

    `aside`: on standard error, where standard output is for results alone.
    """

    def __init__(self, *, aside: bool = False) -> None:
        self.started, self.aside = time.monotonic(), aside

    def __call__(self, text: str) -> None:
        seconds = int(time.monotonic() - self.started)
        print(
            f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}", file=sys.stderr if self.aside else sys.stdout, flush=True
        )


def wide_console() -> Console:
    """Standard output; never narrower than a table needs when it goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 150, highlight=False, soft_wrap=False)


def percent(value: float | None) -> str:
    """`46.6 %`, or a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"
