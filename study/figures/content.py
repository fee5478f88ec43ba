"""What a figure says, as plain values. A figure is made once; `static` and `interactive` only draw it.

Lengths of lines and diameters of markers are in typographic points, a figure's size in inches. Roles are those of
`style.ROLES`. Text is text: each renderer makes it harmless for where it goes. Marks are drawn in their order, and
those with the same label are one entry of the legend.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Values = tuple[float | None, ...]
Errors = tuple[tuple[float, float], ...]  # (below, above) for each point
Ticks = tuple[tuple[float, str], ...]
Dash = Literal["solid", "dash", "dot"]


@dataclass(frozen=True)
class Scale:
    """One axis of a panel. What is not given is chosen so that everything fits; `low` > `high` turns it around."""

    label: str = ""
    low: float | None = None
    high: float | None = None
    ticks: Ticks = ()
    whole: bool = False  # ticks at whole numbers only
    grid: bool = True


@dataclass(frozen=True)
class Shade:
    """A number as a colour."""

    label: str
    low: float
    high: float
    colours: Literal["viridis", "cividis", "cividis_r"] = "viridis"
    whole: bool = False  # ticks at whole numbers only


@dataclass(frozen=True)
class Series:
    """Markers of diameter `size`, a line of `width` with gaps at None, or both; 0 is neither.

    `texts` are shown by pointing at a point, one text is that of all. `tags` stand beside points as (text, whether
    below on the left). `shades` colour the markers by the figure's shade, not by their role. `shape`: a staircase that
    holds a value until, or after, its point. `ends`: only the last point has a marker. `area`: filled down to 0.
    """

    role: str
    x: Values
    y: Values
    label: str = ""
    texts: tuple[str, ...] = ()
    size: float | tuple[float, ...] = 0.0
    width: float = 0.0
    opacity: float = 1.0
    fill: Literal["full", "white", "none"] = "full"
    dash: Dash = "solid"
    shape: Literal["straight", "until", "after"] = "straight"
    ends: bool = False
    area: bool = False
    shades: tuple[float, ...] = ()
    tags: tuple[tuple[str, bool], ...] = ()
    x_errors: Errors = ()
    y_errors: Errors = ()


@dataclass(frozen=True)
class Bars:
    """Bars, lying or `upright`, from `starts` (0 by default); `names` stand inside where nobody can point at them."""

    role: str
    places: tuple[float, ...]
    lengths: tuple[float, ...]
    starts: tuple[float, ...] = ()
    label: str = ""
    texts: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    thickness: float = 0.74
    opacity: float = 1.0
    errors: Errors = ()
    upright: bool = False


@dataclass(frozen=True)
class Rule:
    """A line across the panel at one value of an axis, shaded from `refused` up to it."""

    value: float
    axis: Literal["x", "y"] = "y"
    label: str = ""
    dash: Dash = "dot"
    role: str = "rule"
    refused: float | None = None


@dataclass(frozen=True)
class Cells:
    """A heat map, the first row at the bottom; `frames`: (label, row, column) of cells that have a name."""

    values: tuple[Values, ...]
    texts: tuple[tuple[str, ...], ...]
    shade: Shade
    frames: tuple[tuple[str, int, int], ...] = ()


@dataclass(frozen=True)
class Path:
    """One line of parallel coordinates: its place on every column, and its colour (grey without one)."""

    values: tuple[float, ...]
    shade: float | None
    bold: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Paths:
    """Parallel coordinates: columns are (label, ticks) with places from 0 to 1, below 0 for `not set`."""

    columns: tuple[tuple[str, Ticks], ...]
    paths: tuple[Path, ...]
    shade: Shade


Mark = Series | Bars | Rule | Cells | Paths


@dataclass(frozen=True)
class Panel:
    """One pair of axes. `empty`: a sentence that stands in its place when there is nothing to draw."""

    marks: tuple[Mark, ...] = ()
    x: Scale = Scale()
    y: Scale = Scale()
    title: str = ""
    empty: str = ""


@dataclass(frozen=True)
class Figure:
    """Panels in rows of `columns`. `heading` and `caption` stand above it on a page, `title` in the picture itself.

    `heights` are those of the rows, relative to each other. `shade` is that of all points with shades.
    """

    name: str
    title: str
    panels: tuple[Panel, ...]
    width: float
    height: float
    heading: str = ""
    caption: str = ""
    columns: int = 1
    heights: tuple[float, ...] = ()
    share_x: bool = False
    share_y: bool = False
    shade: Shade | None = None

    @property
    def empty(self) -> str:
        """Why there is nothing to draw at all; nothing if one panel has something."""
        return "" if any(not panel.empty for panel in self.panels) else self.panels[0].empty

    @property
    def rows(self) -> int:
        """Rows of panels."""
        return -(-len(self.panels) // self.columns)

    def labels(self) -> dict[str, Mark]:
        """The legend: every label once, with the first mark that has it."""
        found: dict[str, Mark] = {}
        for mark in (mark for panel in self.panels for mark in panel.marks if not isinstance(mark, Paths)):
            for label in [frame[0] for frame in mark.frames] if isinstance(mark, Cells) else [mark.label]:
                if label:
                    found.setdefault(label, mark)
        return found
