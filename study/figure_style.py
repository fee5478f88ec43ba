"""How every figure of a report looks: colours that colour-blind people tell apart (Okabe and Ito), and markers."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# state -> colour, marker; one colour a meaning in all figures
STATES = {
    "complete": ("#0072B2", "o"),
    "pruned": ("#E69F00", "v"),
    "failed": ("#D55E00", "X"),
    "running": ("#56B4E9", "s"),
    "dropped": ("#999999", "P"),
}
LABELS = {
    "complete": "full length",
    "pruned": "stopped early",
    "failed": "failed",
    "running": "unfinished",
    "dropped": "dropped",
}
OUTCOMES = {
    **{state: (colour, LABELS[state]) for state, (colour, _) in STATES.items()},
    "running": ("#56B4E9", "running"),
    "paused": ("#CC79A7", "paused"),
    "interrupted": ("#CC79A7", "paused"),
    "lost": ("#666666", "lost with its driver"),
}
ACCENT, GREY = "#009E73", "#8a8a8a"


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> tuple[Figure, Any]:
    """A figure and its axes (always a 2-D array), without pyplot: figures are also drawn outside the main thread."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    for axes in grid.flat:
        plain_axes(axes)
    return figure, grid


def plain_axes(axes: Axes) -> None:
    """No frame on top and right, a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.7)
    axes.set_axisbelow(True)


def percent_axis(axes: Axes, which: str) -> None:
    """Ticks of fractions as percent."""
    from matplotlib.ticker import FuncFormatter

    (axes.xaxis if which == "x" else axes.yaxis).set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:g}"))


def whole_numbers(axis: Any) -> None:
    """Ticks at whole numbers only."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True))
