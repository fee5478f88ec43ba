"""What the browser's figures share: layout, axes, colours' symbols, and what pointing at a trial shows."""

from __future__ import annotations

from html import escape
from typing import Any

from study.figure_style import LABELS
from study.report.content import Content

Plot = dict[str, Any]  # {"data": [...], "layout": {...}}
SYMBOLS = {"complete": "circle", "pruned": "triangle-down", "failed": "x", "running": "square", "dropped": "cross"}
GRID = "#e3e6e8"


def layout_of(height: int = 430, **more: Any) -> dict[str, Any]:
    return {
        "height": height, "margin": {"l": 62, "r": 20, "t": 20, "b": 52}, "hovermode": "closest",
        "legend": {"orientation": "h", "y": -0.18, "yanchor": "top"}, "plot_bgcolor": "white", "paper_bgcolor": "white",
        "font": {"family": "system-ui, sans-serif", "size": 13}, **more,
    }  # fmt: skip


def axis_of(title: str, **more: Any) -> dict[str, Any]:
    return {
        "title": {"text": escape(title), "standoff": 8},
        "gridcolor": GRID,
        "zeroline": False,
        "automargin": True,
        **more,
    }


def in_percent(values: list[Any]) -> list[Any]:
    return [None if value is None else 100 * value for value in values]


def hover(content: Content, number: int) -> str:
    """What pointing at a trial shows."""
    trial = content.trial(number)
    lines = [f"<b>trial {number}</b>: {LABELS[trial.state]}, {trial.epochs}/{trial.planned_epochs} epochs"]
    if trial.robust_accuracy is not None and trial.clean_accuracy is not None:
        lines.append(f"clean {100 * trial.clean_accuracy:.1f} %, robust {100 * trial.robust_accuracy:.1f} %")
    lines += [f"{escape(axis.label)} = {escape(axis.text(trial.params.get(axis.path)))}" for axis in content.axes]
    if trial.note:
        lines.append(f"<i>{escape(trial.note[:120])}</i>")
    return "<br>".join(lines) + "<extra></extra>"
