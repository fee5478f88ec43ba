"""What the measured models of a promotion are called."""

from __future__ import annotations

__all__ = ["CHAMPION", "UNMODIFIED", "trial_label"]

UNMODIFIED = "unmodified CLIP"
CHAMPION = "champion"


def trial_label(number: int) -> str:
    """Of a trial's checkpoint."""
    return f"trial {number}"
