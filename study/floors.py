"""Floors as people write them: `>= 0.55`, `>= clip - 0.06`, `>= clip * 0.8`."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator

from trainers.units import Frozen

__all__ = ["Floor", "FloorText", "parse_floor"]

FLOOR = re.compile(r"^>=\s*(?:(clip)\s*(?:([-+*])\s*)?)?(\d*\.?\d+(?:e-?\d+)?)?$")


class Floor(Frozen):
    """`>= 0.55`, `>= clip - 0.06` or `>= clip * 0.8`, where clip is the unmodified model's accuracy."""

    of_clip: float = 0.0
    offset: float = 0.0

    def resolve(self, clip: float) -> float:
        """The number, in [0, 1] when reachable."""
        return self.of_clip * clip + self.offset


def parse_floor(text: str) -> Floor:
    """Read a constraint; `ValueError` names the rule."""
    match = FLOOR.match(text.strip()) if isinstance(text, str) else None
    clip, sign, number = match.groups() if match else (None, None, None)
    if match is None or (clip and bool(sign) != bool(number)) or (not clip and number is None):
        raise ValueError(f"{text!r} is not a floor; write '>= 0.55', '>= clip - 0.06' or '>= clip * 0.8'")
    value = float(number or 0)
    if not clip:
        floor = Floor(offset=value)
    elif sign == "*":
        floor = Floor(of_clip=value)
    else:
        floor = Floor(of_clip=1.0, offset=-value if sign == "-" else value)
    if floor.resolve(0.0) > 1 or (not clip and value > 1):
        raise ValueError(f"{text!r} can never be reached: accuracy is at most 1")
    return floor


def _check_floor(text: str) -> str:
    parse_floor(text)
    return text


FloorText = Annotated[str, AfterValidator(_check_floor)]
