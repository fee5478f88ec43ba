"""Figures for the browser: plain traces and layouts of plotly.js.

All text is escaped here, and only here: plotly reads HTML in labels.
"""

from __future__ import annotations

from functools import singledispatch
from html import escape
from typing import Any

from matplotlib import colormaps
from matplotlib.colors import to_hex, to_rgba

from study.figures.content import Bars, Cells, Errors, Figure, Mark, Panel, Paths, Rule, Scale, Series, Shade
from study.figures.style import BROWSER_FONT, BROWSER_PIXELS, GRID, ROLES

Plot = dict[str, Any]  # {"data": [...], "layout": {...}}
Domain = tuple[float, float]
STEPS = {"straight": "linear", "until": "vh", "after": "hv"}
PIXELS = 90.0  # of an inch
POINT = 96 / 72  # pixels of a typographic point
LETTER = 0.0062  # of the page's width
ABOVE, BELOW, LINE = 26.0, 58.0, 21.0  # pixels: a panel's title, an axis' ticks and label, a line of the legend
LETTERS = 115  # of a legend's line


def plot(figure: Figure) -> Plot:
    """The figure as plotly.js takes it: data and layout."""
    legend = sum(len(label) + 6 for label in figure.labels()) // LETTERS + 1 if figure.labels() else 0
    titled = any(panel.title for panel in figure.panels)
    lines = max(panel.title.count("\n") for panel in figure.panels)
    top, bottom = (ABOVE + 16 * lines if titled else 0) + 24, BELOW + legend * LINE
    height = max(180.0, PIXELS * figure.height)
    sides = (62, 20)
    if any(isinstance(mark, Paths) for panel in figure.panels for mark in panel.marks):
        top, bottom, sides = 62.0, 30.0, (70, 70)  # names above, values on the left, and no axis of its own
    layout: dict[str, Any] = {
        "height": round(height), "margin": {"l": sides[0], "r": sides[1], "t": round(top), "b": round(bottom)},
        "hovermode": "closest", "barmode": "overlay", "plot_bgcolor": "white", "paper_bgcolor": "white",
        "font": {"family": BROWSER_FONT, "size": BROWSER_PIXELS}, "shapes": [], "annotations": [],
        "legend": {"orientation": "h", "yref": "container", "y": 0.01, "yanchor": "bottom", "x": 0,
                   "traceorder": "normal"},
    }  # fmt: skip
    if figure.shade:
        layout["coloraxis"] = _colour_axis(figure.shade)
    data: list[dict[str, Any]] = []
    seen: set[str] = set()
    for place, (panel, (x, y)) in enumerate(zip(figure.panels, _domains(figure, height - top - bottom), strict=True)):
        _panel(figure, panel, place, x, y, data, layout, seen)
    return {"data": data, "layout": layout}


def text_of(text: str) -> str:
    """Text that shows as it was written."""
    return escape(text).replace("\n", "<br>")


def _domains(figure: Figure, pixels: float) -> list[tuple[Domain, Domain]]:
    """Every panel's share of the width and of the height, from 0 to 1."""
    right = 0.93 if figure.shade else 1.0
    names = [len(text) for place, panel in enumerate(figure.panels) if place % figure.columns
             for _, text in panel.y.ticks]  # fmt: skip
    labelled = any(panel.y.label for place, panel in enumerate(figure.panels) if place % figure.columns)
    gap = 0.025 if figure.share_y else (0.075 if labelled else 0.03) + LETTER * max(names, default=0)
    bars = 0.07 if any(isinstance(mark, Cells) for panel in figure.panels for mark in panel.marks) else 0.0
    width = (right - bars - (gap + bars) * (figure.columns - 1)) / figure.columns
    titled = any(panel.title for panel in figure.panels)
    between = (24 if figure.share_x else BELOW + 6 + (ABOVE if titled else 0)) / max(1.0, pixels)
    shares = figure.heights or (1.0,) * figure.rows
    unit = max(0.02, (1 - between * (figure.rows - 1)) / sum(shares))
    found = []
    for place in range(len(figure.panels)):
        row, column = divmod(place, figure.columns)
        left = column * (width + gap + bars)
        top = 1 - sum(shares[:row]) * unit - row * between
        found.append(((left, min(1.0, left + width)), (max(0.0, top - shares[row] * unit), min(1.0, top))))
    return found


def _panel(figure: Figure, panel: Panel, place: int, x: Domain, y: Domain, data: list[Any], layout: dict[str, Any],
           seen: set[str]) -> None:  # fmt: skip
    number = "" if place == 0 else str(place + 1)
    row, column = divmod(place, figure.columns)
    below = row == figure.rows - 1 or place + figure.columns >= len(figure.panels)
    words = [(panel.title, y[1], "bottom"), (panel.empty, (y[0] + y[1]) / 2, "middle")]
    for text, height, anchor in words:
        if text:
            layout["annotations"].append({
                "xref": "paper", "yref": "paper", "x": (x[0] + x[1]) / 2, "y": height, "xanchor": "center",
                "yanchor": anchor, "text": text_of(text), "showarrow": False,
            })  # fmt: skip
    paths = any(isinstance(mark, Paths) for mark in panel.marks)
    if panel.empty or paths:
        layout[f"xaxis{number}"] = layout[f"yaxis{number}"] = {"visible": False}
    else:
        hidden = figure.share_x and not below
        layout[f"xaxis{number}"] = {
            **_axis(panel.x, x), "anchor": f"y{number}", "showticklabels": not hidden,
            **({"matches": "x"} if figure.share_x and place else {}),
        }  # fmt: skip
        layout[f"yaxis{number}"] = {
            **_axis(panel.y, y), "anchor": f"x{number}", "showticklabels": not (figure.share_y and column),
            **({"matches": "y"} if figure.share_y and place else {}),
        }  # fmt: skip
    if panel.empty:
        return
    for mark in panel.marks:
        traces, shapes = _mark(mark, (x, y))
        for item in [*traces, *shapes]:
            if not paths:
                item |= {"xaxis": f"x{number}", "yaxis": f"y{number}"} if item in traces else _placed(item, number)
            name = item.get("name", "")
            item |= {"showlegend": bool(name) and name not in seen, "legendgroup": name}
            seen.add(name)
        data += traces
        layout["shapes"] += shapes


def _placed(shape: dict[str, Any], number: str) -> dict[str, str]:
    """A shape's axes; it spans the panel along the one that it says nothing about."""
    return {f"{axis}ref": f"{axis}{number}{shape.pop(f'{axis}span', '')}" for axis in ("x", "y")}


def _axis(scale: Scale, domain: Domain) -> dict[str, Any]:
    found: dict[str, Any] = {
        "title": {"text": text_of(scale.label), "standoff": 8}, "domain": list(domain), "gridcolor": GRID,
        "showgrid": scale.grid, "zeroline": False, "automargin": True, "ticklabelstandoff": 4,
    }  # fmt: skip
    if scale.low is not None or scale.high is not None:
        found["range"] = [scale.low, scale.high]
    if scale.ticks:
        found |= {"tickvals": [place for place, _ in scale.ticks], "ticktext": [text_of(t) for _, t in scale.ticks]}
    elif scale.whole:
        found["tickformat"] = "d"
        if scale.low is not None and scale.high is not None and abs(scale.high - scale.low) < 10:
            found["dtick"] = 1
    return found


Drawn = tuple[list[dict[str, Any]], list[dict[str, Any]]]  # traces and shapes


@singledispatch
def _mark(mark: Mark, domains: tuple[Domain, Domain]) -> Drawn:
    raise AssertionError(f"no way to draw {type(mark).__name__}")


def _hover(texts: tuple[str, ...]) -> dict[str, Any]:
    """What pointing at a mark shows: its text, the first of several lines bold."""
    if not any(texts):
        return {"hoverinfo": "skip"}
    shown = []
    for text in texts:
        first, _, rest = text.partition("\n")
        shown.append(f"<b>{text_of(first)}</b><br>{text_of(rest)}" if rest else text_of(first))
    return {"hoverinfo": "text", "hovertext": shown[0] if len(shown) == 1 else shown}


def _errors(errors: Errors, colour: str) -> dict[str, Any]:
    return {"type": "data", "symmetric": False, "array": [above for _, above in errors],
            "arrayminus": [below for below, _ in errors], "color": colour, "thickness": 1.3}  # fmt: skip


@_mark.register
def _series(mark: Series, domains: tuple[Domain, Domain]) -> Drawn:
    role = ROLES[mark.role]
    modes = [mode for mode, wanted in (("lines", mark.width or mark.area), ("markers", mark.size)) if wanted]
    trace: dict[str, Any] = {
        "type": "scatter", "mode": "+".join(modes), "name": text_of(mark.label), "x": list(mark.x), "y": list(mark.y),
        "opacity": mark.opacity, **_hover(mark.texts),
    }  # fmt: skip
    if mark.width or mark.area:
        trace["line"] = {"color": role.colour, "width": POINT * mark.width, "dash": mark.dash,
                         "shape": STEPS[mark.shape]}  # fmt: skip
    if mark.area:
        red, green, blue, opacity = to_rgba(role.colour, mark.opacity)
        colour = f"rgba({255 * red:.0f},{255 * green:.0f},{255 * blue:.0f},{opacity:g})"
        trace |= {"fill": "tozeroy", "fillcolor": colour}
    if mark.size:
        trace["marker"] = _marker(mark)
    for which, errors in (("error_x", mark.x_errors), ("error_y", mark.y_errors)):
        if errors:
            trace[which] = _errors(errors, role.colour)
    if not any(text for text, _ in mark.tags):
        return [trace], []
    words = {"type": "scatter", "mode": "markers+text", "x": list(mark.x), "y": list(mark.y), "hoverinfo": "skip",
             "text": [text_of(text) for text, _ in mark.tags], "textfont": {"size": 11},
             "textposition": ["bottom left" if below else "top right" for _, below in mark.tags],
             "marker": {"size": 14, "opacity": 0}}  # fmt: skip
    return [trace, words], []  # the markers that nobody sees keep the words off the points


def _marker(mark: Series) -> dict[str, Any]:
    role = ROLES[mark.role]
    sizes: Any = [POINT * size for size in mark.size] if isinstance(mark.size, tuple) else POINT * mark.size
    if mark.ends:
        sizes = [0.0] * (len(mark.x) - 1) + [sizes]
    marker = {"size": sizes, "color": role.colour, "symbol": role.marker}
    if mark.shades:
        marker |= {"color": list(mark.shades), "coloraxis": "coloraxis"}
    if mark.fill == "none" or (mark.fill == "white" and mark.shades):
        marker |= {"symbol": f"{role.marker}-open", "line": {"width": 1.8}}
    elif mark.fill == "white":
        marker |= {"color": "white", "line": {"width": 1.6, "color": role.colour}}
    elif role.edge:
        marker["line"] = {"width": 1, "color": role.edge}
    return marker


@_mark.register
def _bars(mark: Bars, domains: tuple[Domain, Domain]) -> Drawn:
    role = ROLES[mark.role]
    places, lengths = ("x", "y") if mark.upright else ("y", "x")
    trace = {"type": "bar", "orientation": "v" if mark.upright else "h", "name": text_of(mark.label),
             places: list(mark.places), lengths: list(mark.lengths), "width": mark.thickness, "opacity": mark.opacity,
             "marker": {"color": role.colour}, **_hover(mark.texts)}  # fmt: skip
    if mark.starts:
        trace["base"] = list(mark.starts)
    if mark.errors:
        trace[f"error_{lengths}"] = _errors(mark.errors, "#2a2a2a")
    return [trace], []


@_mark.register
def _rule(mark: Rule, domains: tuple[Domain, Domain]) -> Drawn:
    axis, other = ("x", "y") if mark.axis == "x" else ("y", "x")
    across = {f"{other}0": 0, f"{other}1": 1, f"{other}span": " domain", f"{axis}1": mark.value}
    line = {"dash": mark.dash, "width": 1.4, "color": ROLES[mark.role].colour}
    shapes = [{"type": "line", "name": text_of(mark.label), "line": line, f"{axis}0": mark.value, **across}]
    if mark.refused is not None:
        shapes.append({"type": "rect", "fillcolor": ROLES["grey"].colour, "opacity": 0.13, "line": {"width": 0},
                       "layer": "below", f"{axis}0": mark.refused, **across})  # fmt: skip
    return [], shapes


@_mark.register
def _cells(mark: Cells, domains: tuple[Domain, Domain]) -> Drawn:
    (_, right), (low, high) = domains
    bar = {"x": right + 0.005, "y": (low + high) / 2, "len": high - low, "thickness": 12, "xpad": 2}
    colours, shade = _scale_of(mark.shade), mark.shade
    trace = {"type": "heatmap", "z": [list(row) for row in mark.values], "zmin": shade.low, "zmax": shade.high,
             "colorscale": colours, "colorbar": bar, "texttemplate": "%{text}", "hoverinfo": "skip",
             "text": [[text_of(text) for text in row] for row in mark.texts], "xgap": 1, "ygap": 1}  # fmt: skip
    frames = [
        {"type": "rect", "name": text_of(label), "x0": column - 0.46, "x1": column + 0.46, "y0": row - 0.44,
         "y1": row + 0.44, "line": {"color": ROLES["frame"].colour, "width": 3, "dash": ("solid", "dot")[place % 2]}}
        for place, (label, row, column) in enumerate(mark.frames)
    ]  # fmt: skip
    return [trace], frames


@_mark.register
def _paths(mark: Paths, domains: tuple[Domain, Domain]) -> Drawn:
    """Grey lines have a colour below the shade's range."""
    paths = sorted(mark.paths, key=lambda path: path.shade is not None)
    lowest = [min([0.0, *(place for place, _ in ticks)]) for _, ticks in mark.columns]
    dimensions = [
        {"label": text_of(label), "range": [low, 1], "values": [path.values[column] for path in paths],
         "tickvals": [place for place, _ in ticks], "ticktext": [text_of(text) for _, text in ticks]}
        for column, ((label, ticks), low) in enumerate(zip(mark.columns, lowest, strict=True))
    ]  # fmt: skip
    shade = mark.shade
    span = shade.high - shade.low
    grey = 0.1 * span if any(path.shade is None for path in paths) else 0.0
    line = {
        "color": [shade.low - grey if path.shade is None else path.shade for path in paths],
        "colorscale": _scale_of(shade, grey / (span + grey) if span else 0.0), "cmin": shade.low - grey,
        "cmax": shade.high, "showscale": True, "colorbar": _bar_of(shade),
    }  # fmt: skip
    return [{"type": "parcoords", "dimensions": dimensions, "line": line, "labelfont": {"size": 12}}], []


def _scale_of(shade: Shade, grey: float = 0.0) -> list[list[Any]]:
    """The shade's colours from 0 to 1, for plotly; the lowest part may be grey."""
    colours, steps = colormaps[shade.colours], 16
    stops = [[grey + (1 - grey) * step / steps, to_hex(colours(step / steps))] for step in range(steps + 1)]
    return [[0.0, "#d4d7da"], [0.9 * grey, "#d4d7da"], *stops] if grey else stops


def _bar_of(shade: Shade) -> dict[str, Any]:
    whole = {"tickformat": "d"} if shade.whole else {}
    if shade.whole and shade.high - shade.low < 10:
        whole["dtick"] = 1  # type: ignore[assignment]
    return {"title": {"text": text_of(shade.label), "side": "right"}, "thickness": 14, **whole}


def _colour_axis(shade: Shade) -> dict[str, Any]:
    return {"cmin": shade.low, "cmax": shade.high, "colorscale": _scale_of(shade), "colorbar": _bar_of(shade)}
