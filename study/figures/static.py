"""Figures as PNG and as PDF, by matplotlib and without pyplot: a driver draws them outside the main thread."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Drawn
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from study.figures.content import Bars, Cells, Errors, Figure, Mark, Panel, Paths, Rule, Scale, Series, Shade, Values
from study.figures.style import FONTS, ROLES

matplotlib.rcParams["pdf.fonttype"] = 42  # TrueType: publishers refuse Type 3

MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "star": "*", "cross": "P", "x": "X", "triangle-up": "^",
    "triangle-down": "v",
}  # fmt: skip
DASHES = {"solid": "-", "dash": "--", "dot": ":"}
STEPS = {"straight": "default", "until": "steps-pre", "after": "steps-post"}
LETTER = 0.52  # width of one, of its size
POINTS = 72  # of an inch


def draw(figure: Figure) -> Drawn:
    """The drawn figure; of one that is empty, its sentence."""
    height = min(figure.height, 2.2) if figure.empty else figure.height
    drawn = Drawn(figsize=(figure.width, height), layout="constrained")
    FigureCanvasAgg(drawn)
    ratios = {"height_ratios": figure.heights} if figure.heights else {}
    grid = drawn.subplots(
        figure.rows, figure.columns, squeeze=False, sharex=figure.share_x, sharey=figure.share_y, gridspec_kw=ratios
    )
    for axes, panel in zip(grid.flat, figure.panels, strict=False):
        _panel(axes, panel, figure.width / figure.columns, figure.shade)
    for axes in grid.flat[len(figure.panels) :]:
        axes.set_visible(False)
    if figure.shade and not figure.empty:
        _colour_bar(drawn, list(grid.flat), figure.shade)
    drawn.suptitle(_wrapped(figure.title, figure.width * POINTS, FONTS["title"]), fontsize=FONTS["title"])
    _legend(drawn, figure)
    return drawn


def png(figure: Figure, *, dpi: int = 150) -> bytes:
    """The figure as the bytes of a PNG."""
    return _saved(draw(figure), "png", dpi)


def write(figure: Figure, folder: Path, *, paper: bool = True, dpi: int = 150) -> None:
    """Write NAME.png into `folder`, and NAME.pdf for a `paper`."""
    drawn = draw(figure)
    for kind in ("png", "pdf") if paper else ("png",):
        (folder / f"{figure.name}.{kind}").write_bytes(_saved(drawn, kind, dpi))


def _saved(drawn: Drawn, kind: str, dpi: int) -> bytes:
    content = io.BytesIO()
    undated = {"CreationDate": None} if kind == "pdf" else None  # the same figure is the same file
    drawn.savefig(content, format=kind, dpi=dpi, metadata=undated)
    return content.getvalue()


def plain(text: str) -> str:
    """Text in which matplotlib finds no formula."""
    return text.replace("$", r"\$")


def _wrapped(text: str, points: float, size: float) -> str:
    """Text in lines that fit into so many points."""
    letters = max(12, int(points / (LETTER * size)))
    return "\n".join(plain(part) for line in text.split("\n") for part in textwrap.wrap(line, letters) or [""])


def _panel(axes: Any, panel: Panel, inches: float, shade: Shade | None) -> None:
    points = inches * POINTS - 60
    if panel.title:
        axes.set_title(_wrapped(panel.title, points, FONTS["panel"]), fontsize=FONTS["panel"])
    if panel.empty:
        text = _wrapped(panel.empty, 0.9 * points, FONTS["label"])
        colour = ROLES["grey"].colour
        axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, fontsize=FONTS["label"],
                  color=colour)  # fmt: skip
        axes.set_axis_off()
        return
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=FONTS["tick"])
    for place, mark in enumerate(panel.marks):
        _mark(mark, axes, place + 2, shade)
    axes.margins(0.06)
    axes.autoscale_view()
    _scale(axes, "x", panel.x, points)
    _scale(axes, "y", panel.y, points)


def _scale(axes: Any, which: str, scale: Scale, points: float) -> None:
    axis = getattr(axes, f"{which}axis")
    if scale.grid:
        axes.grid(axis=which, alpha=0.25, linewidth=0.7)
    if scale.label:
        axis.set_label_text(plain(scale.label), fontsize=FONTS["label"])
    if scale.ticks:
        axis.set_ticks([place for place, _ in scale.ticks], [plain(text) for _, text in scale.ticks])
        needed = sum(len(text) + 2 for _, text in scale.ticks) * LETTER * FONTS["tick"]
        if which == "x" and needed > points:
            axes.tick_params(axis="x", labelrotation=35)
    elif scale.whole:
        axis.set_major_locator(MaxNLocator(integer=True))
    if scale.low is not None or scale.high is not None:
        getattr(axes, f"set_{which}lim")(scale.low, scale.high)


def _numbers(values: Values) -> list[float]:
    return [float("nan") if value is None else value for value in values]


@singledispatch
def _mark(mark: Mark, axes: Any, order: int, shade: Shade | None) -> None:
    raise AssertionError(f"no way to draw {type(mark).__name__}")


@_mark.register
def _series(mark: Series, axes: Any, order: int, shade: Shade | None) -> None:
    role, x, y = ROLES[mark.role], _numbers(mark.x), _numbers(mark.y)
    own = {"color": role.colour, "alpha": mark.opacity, "zorder": order}
    if mark.area:
        step = {"until": "pre", "after": "post"}.get(mark.shape)
        axes.fill_between(x, y, step=step, linewidth=0, **own)
    elif mark.width:
        axes.plot(x, y, linewidth=mark.width, linestyle=DASHES[mark.dash], drawstyle=STEPS[mark.shape], **own)
    if mark.x_errors or mark.y_errors:
        axes.errorbar(x, y, xerr=_ends(mark.x_errors), yerr=_ends(mark.y_errors), fmt="none", ecolor=role.colour,
                      capsize=3, elinewidth=1.3, zorder=order)  # fmt: skip
    if mark.size:
        colours: Any = _colours(shade)(_normal(shade)([*mark.shades])) if mark.shades and shade else role.colour
        full, marked = mark.fill == "full", slice(-1 if mark.ends else 0, None)
        sizes = [size**2 for size in mark.size] if isinstance(mark.size, tuple) else mark.size**2
        face, edge = (colours, role.edge or "none") if full else (mark.fill, colours)
        axes.scatter(x[marked], y[marked], s=sizes, marker=MARKERS[role.marker], facecolors=face, edgecolors=edge,
                     linewidths=0.7 if full else 1.3, alpha=mark.opacity, zorder=order)  # fmt: skip
    for place, other, (text, below) in zip(x, y, mark.tags, strict=False):
        axes.annotate(plain(text), (place, other), textcoords="offset points", xytext=(-4, -12) if below else (6, 5),
                      ha="right" if below else "left", fontsize=FONTS["tag"], zorder=20)  # fmt: skip


def _ends(errors: Errors) -> Any:
    return [[low for low, _ in errors], [high for _, high in errors]] if errors else None


@_mark.register
def _bars(mark: Bars, axes: Any, order: int, shade: Shade | None) -> None:
    role, starts = ROLES[mark.role], mark.starts or (0.0,) * len(mark.places)
    bar, first = (axes.bar, "bottom") if mark.upright else (axes.barh, "left")
    bar(mark.places, mark.lengths, mark.thickness, **{first: starts}, color=role.colour, alpha=mark.opacity,
        zorder=order)  # fmt: skip
    if mark.errors:
        ends = [start + length for start, length in zip(starts, mark.lengths, strict=True)]
        x, y = (mark.places, ends) if mark.upright else (ends, mark.places)
        axes.errorbar(x, y, **{"yerr" if mark.upright else "xerr": _ends(mark.errors)}, fmt="none", ecolor="black",
                      elinewidth=1.3, capsize=3, zorder=order)  # fmt: skip
    for place, start, name in zip(mark.places, starts, mark.names, strict=False):
        if name:
            axes.annotate(plain(name), (start, place), textcoords="offset points", xytext=(3, 0), va="center",
                          fontsize=6, color="white", clip_on=True, zorder=20,
                          bbox={"facecolor": role.colour, "edgecolor": "none", "pad": 0.6})  # fmt: skip


@_mark.register
def _rule(mark: Rule, axes: Any, order: int, shade: Shade | None) -> None:
    line, span = (axes.axvline, axes.axvspan) if mark.axis == "x" else (axes.axhline, axes.axhspan)
    line(mark.value, color=ROLES[mark.role].colour, linestyle=DASHES[mark.dash], linewidth=1.2, zorder=order)
    if mark.refused is not None:
        span(mark.refused, mark.value, color=ROLES["grey"].colour, alpha=0.12, linewidth=0, zorder=1)


@_mark.register
def _cells(mark: Cells, axes: Any, order: int, shade: Shade | None) -> None:
    image = axes.imshow([_numbers(row) for row in mark.values], cmap=_colours(mark.shade), norm=_normal(mark.shade),
                        aspect="auto", origin="lower")  # fmt: skip
    _colour_bar(axes.figure, [axes], mark.shade)
    middle = (mark.shade.low + mark.shade.high) / 2
    for row, (values, texts) in enumerate(zip(mark.values, mark.texts, strict=True)):
        for column, (value, text) in enumerate(zip(values, texts, strict=True)):
            dark = value is not None and value < middle
            axes.text(column, row, plain(text), ha="center", va="center", color="white" if dark else "black")
    for place, (_, row, column) in enumerate(mark.frames):
        axes.add_patch(_frame(place, (column - 0.46, row - 0.44), 0.92, 0.88))
    image.set_zorder(order)


def _frame(place: int, corner: tuple[float, float], width: float, height: float) -> Rectangle:
    return Rectangle(corner, width, height, fill=False, edgecolor=ROLES["frame"].colour, linewidth=2.5,
                     linestyle=("-", ":")[place % 2], zorder=9)  # fmt: skip


@_mark.register
def _paths(mark: Paths, axes: Any, order: int, shade: Shade | None) -> None:
    colours, normal = _colours(mark.shade), _normal(mark.shade)
    places = range(len(mark.columns))
    for path in mark.paths:
        own = {"color": ROLES["grey"].colour, "alpha": 0.3, "linewidth": 0.9, "zorder": order}
        if path.shade is not None:
            own = {"color": colours(normal(path.shade)), "alpha": 0.85, "linewidth": 1.3, "zorder": order + 0.1}
        if path.bold:
            own |= {"alpha": 1.0, "linewidth": 3.0, "marker": "o", "markersize": 5, "markeredgecolor": "black"}
        axes.plot(places, path.values, linestyle=(0, (4, 2)) if path.dashed else "-", **own)
    lowest = min([0.0, *(place for _, ticks in mark.columns for place, _ in ticks)])
    for column, (label, ticks) in enumerate(mark.columns):
        axes.plot([column, column], [0, 1], color="black", linewidth=1, zorder=order + 1)
        for place, text in ticks:
            axes.plot([column - 0.025, column], [place, place], color="black", linewidth=1, zorder=order + 1)
            box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
            axes.text(column - 0.05, place, plain(text), ha="right", va="center", fontsize=FONTS["tick"],
                      zorder=order + 2, bbox=box)  # fmt: skip
        axes.text(column, 1.04, _wrapped(label, 75, FONTS["label"]), ha="center", va="bottom", fontsize=FONTS["label"])
    axes.set(xlim=(-0.35, len(mark.columns) - 0.6), ylim=(lowest - 0.04, 1.05))
    axes.set_axis_off()
    _colour_bar(axes.figure, [axes], mark.shade)


def _colours(shade: Shade) -> Any:
    return colormaps[shade.colours]


def _normal(shade: Shade) -> Normalize:
    return Normalize(shade.low, shade.high)


def _colour_bar(drawn: Drawn, axes: Sequence[Any], shade: Shade) -> None:
    mapped = ScalarMappable(_normal(shade), _colours(shade))
    bar = drawn.colorbar(mapped, ax=axes, pad=0.015, fraction=0.03, aspect=28)
    bar.set_label(plain(shade.label), fontsize=FONTS["label"])
    bar.ax.tick_params(labelsize=FONTS["tick"])
    if shade.whole:
        bar.ax.yaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(drawn: Drawn, figure: Figure) -> None:
    labels = figure.labels()
    if not labels:
        return
    letters = max(map(len, labels)) + 4  # the sample, and space
    columns = max(1, min(len(labels), int(figure.width * POINTS / (letters * LETTER * FONTS["legend"]))))
    framed = [label for panel in figure.panels for mark in panel.marks if isinstance(mark, Cells)
              for label, _, _ in mark.frames]  # fmt: skip
    samples = [_frame(framed.index(label), (0, 0), 1, 1) if label in framed else _sample(mark)
               for label, mark in labels.items()]  # fmt: skip
    drawn.legend(samples, [plain(label) for label in labels], loc="outside lower center", ncols=columns, frameon=False,
                 fontsize=FONTS["legend"])  # fmt: skip


def _sample(mark: Mark) -> Any:
    """What stands before a label: the mark, small enough for a legend."""
    assert isinstance(mark, Series | Bars | Rule)
    role = ROLES[mark.role]
    if isinstance(mark, Bars) or (isinstance(mark, Series) and mark.area):
        return Patch(color=role.colour, alpha=mark.opacity)
    if isinstance(mark, Rule):
        return Line2D([], [], color=role.colour, linestyle=DASHES[mark.dash], linewidth=1.2)
    face, edge = (role.colour, role.edge or "none") if mark.fill == "full" else (mark.fill, role.colour)
    size = max(mark.size) if isinstance(mark.size, tuple) else mark.size
    lined = mark.width or mark.x_errors or mark.y_errors
    return Line2D(
        [], [], color=role.colour, linestyle=DASHES[mark.dash] if lined else "", linewidth=mark.width or 1.3,
        marker=MARKERS[role.marker] if size else "", markersize=min(11.0, max(5.0, size)), markerfacecolor=face,
        markeredgecolor=edge,
    )  # fmt: skip
