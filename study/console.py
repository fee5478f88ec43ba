"""What a person reads: lines of progress with the time, and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from infra.errors import while_unread

if TYPE_CHECKING:
    from rich.console import Console

Say = Callable[[str], None]  # what takes a line of progress


def say(text: str) -> None:
    """Progress and remarks; results alone go to standard output."""
    with while_unread(sys.stderr):
        print(text, file=sys.stderr, flush=True)


def counted(number: int, kind: str) -> str:
    """`1 trial`, `2 trials`."""
    return f"{number} {kind if number != 1 else kind.removesuffix('s')}"


def duration(seconds: float) -> str:
    """`6 s`, `14 min`, `3.2 h` or `12.5 days`."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds < 1 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 72 * 3600 else f"{seconds / 86400:.1f} days"


class Clock:
    """Prints lines that begin with the time since it was made. `clock("...")`.

    `aside`: on standard error, where standard output is for results.
    """

    def __init__(self, *, aside: bool = False) -> None:
        self.started, self.aside = time.monotonic(), aside

    def __call__(self, text: str) -> None:
        seconds = int(time.monotonic() - self.started)
        stream = sys.stderr if self.aside else sys.stdout
        with while_unread(stream):
            print(f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}", file=stream, flush=True)


def wide_console() -> Console:
    """Standard output; never narrower than a table needs when it goes to a file."""
    from rich.console import Console  # not for commands that print no table

    return Console(width=None if sys.stdout.isatty() else 160, highlight=False, soft_wrap=False)


def percent(value: float | None) -> str:
    """`46.6 %`, or a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"
