"""How every figure looks: one colour and one marker a role, told apart by colour-blind people (Okabe and Ito)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Role:
    """What a mark stands for is drawn like this in every figure; `edge`: the marker's outline, if it has one."""

    colour: str
    marker: str = "circle"
    edge: str = ""


STATES = {
    "complete": Role("#0072B2", "circle"),
    "pruned": Role("#E69F00", "triangle-down"),
    "failed": Role("#D55E00", "x"),
    "running": Role("#56B4E9", "square"),
    "dropped": Role("#999999", "cross"),
}
LABELS = {
    "complete": "full length",
    "pruned": "stopped early",
    "failed": "failed",
    "running": "unfinished",
    "dropped": "dropped",
}
OUTCOMES = {  # of an attempt: its role and its label
    **{state: (state, label) for state, label in LABELS.items()},
    "running": ("running", "running"),
    "paused": ("paused", "paused"),
    "interrupted": ("paused", "paused"),
    "lost": ("lost", "lost with its driver"),
}
SERIES = (  # methods side by side
    Role("#0072B2", "circle"), Role("#E69F00", "square"), Role("#009E73", "triangle-up"), Role("#D55E00", "diamond"),
    Role("#CC79A7", "triangle-down"), Role("#56B4E9", "cross"), Role("#999999", "x"),
)  # fmt: skip
ROLES = {
    **STATES,
    **{f"series {place}": role for place, role in enumerate(SERIES)},
    "paused": Role("#CC79A7"),
    "lost": Role("#666666"),
    "best": Role("#009E73"),
    "best star": Role("#009E73", "star", edge="#000000"),
    "leader": Role("#D55E00"),
    "paper": Role("#CC79A7", "diamond"),
    "warm start": Role("#CC79A7", "square"),
    "unmodified": Role("#000000", "star"),
    "unmodified model": Role("#8a8a8a", "diamond"),  # beside one model, where black would be too loud
    "rule": Role("#000000"),
    "noise": Role("#D55E00"),
    "frame": Role("#D55E00"),
    "report": Role("#ffffff"),
    "grey": Role("#8a8a8a"),
    "pale": Role("#b9c7d1"),
}
GRID = "#e3e6e8"
FONTS = {"title": 12.0, "panel": 10.5, "label": 10.0, "tick": 8.5, "legend": 8.5, "tag": 8.0}  # points
BROWSER_FONT, BROWSER_PIXELS = "system-ui, sans-serif", 13


def series(place: int) -> str:
    """The role of one of several methods."""
    return f"series {place % len(SERIES)}"
