"""The browser's figures about the search space, and the time line."""

from __future__ import annotations

import math
from html import escape
from typing import Any

from matplotlib.ticker import MaxNLocator

from study.figure_style import ACCENT, OUTCOMES, STATES
from study.report.content import Axis, Content
from study.report.style import Plot, axis_of, hover, in_percent, layout_of

CROWDED = 0.07  # ticks that are nearer than this would be printed over each other
NOT_SET = -0.14  # place of a conditional parameter that a trial does not have, below the axis


def fraction(axis: Axis, value: Any) -> float:
    """The value's place on its axis, 0 (bottom) to 1 (top); `NOT_SET` for one that the trial does not have."""
    if value is None:
        return NOT_SET
    if axis.choices:
        return axis.choices.index(value) / max(1, len(axis.choices) - 1) if len(axis.choices) > 1 else 0.5
    if axis.log:
        return math.log(value / axis.low) / math.log(axis.high / axis.low)
    return (value - axis.low) / (axis.high - axis.low)


def ticks(axis: Axis) -> list[tuple[float, str]]:
    """(place, text) of an axis' ticks: every choice, or the ends and what is round between them."""
    if axis.choices:
        return [(fraction(axis, value), axis.text(value)) for value in axis.choices]
    if axis.log:
        inner = [10.0**power for power in range(math.ceil(math.log10(axis.low)), math.ceil(math.log10(axis.high)))]
    else:
        inner = [float(value) for value in MaxNLocator(4).tick_values(axis.low, axis.high)]
    placed = [(0.0, axis.text(float(axis.low)))]
    for value in inner:
        place = fraction(axis, value)
        if place - placed[-1][0] > CROWDED and 1 - place > CROWDED:  # the ends are always told
            placed.append((place, axis.text(value)))
    return [*placed, (1.0, axis.text(float(axis.high)))]


def panels(count: int) -> tuple[int, int]:
    """Rows and columns of so many panels: at most four side by side, the rows about equally full."""
    rows = max(1, math.ceil(count / 4))
    return rows, max(1, math.ceil(count / rows))


def clock_of(content: Content) -> tuple[float, str, int]:
    """(ms in a unit, the unit's name, origin in ms) that suit the study's length."""
    origin = min([content.created_ms, *(bar.started_ms for bar in content.timeline)])
    span = max([bar.ended_ms for bar in content.timeline], default=origin) - origin
    unit, name = (3_600_000.0, "hours") if span > 3 * 3_600_000 else (60_000.0, "minutes")
    return unit, name, origin


def parallel(content: Content) -> Plot:
    trials = content.in_state("complete")
    dimensions: list[dict[str, Any]] = []
    for axis in content.axes:
        lacking = any(axis.path not in trial.params for trial in trials)
        marks = ([(NOT_SET, "not set")] if lacking else []) + ticks(axis)
        dimensions.append({
            "label": escape(axis.label), "range": [NOT_SET if lacking else 0, 1],
            "values": [fraction(axis, trial.params.get(axis.path)) for trial in trials],
            "tickvals": [place for place, _ in marks], "ticktext": [escape(text) for _, text in marks],
        })  # fmt: skip
    for name in ("clean_accuracy", "robust_accuracy"):
        dimensions.append({"label": f"{name.removesuffix('_accuracy')} %", "tickformat": ".1f",
                           "values": in_percent([getattr(t, name) for t in trials])})  # fmt: skip
    title = {"text": f"{content.measure} (%)", "side": "right"}
    line = {"color": in_percent([content.value(t) for t in trials]), "colorscale": "Viridis",
            "showscale": True, "colorbar": {"title": title, "thickness": 14}}  # fmt: skip
    data = [{"type": "parcoords", "dimensions": dimensions, "line": line, "labelfont": {"size": 12}}] if trials else []
    return {"data": data, "layout": layout_of(430, margin={"l": 70, "r": 70, "t": 60, "b": 30})}


def slices(content: Content) -> Plot:
    trials = content.in_state("complete")
    rows, columns = panels(len(content.axes))
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {}
    width, height = 1 / columns, 1 / rows
    leaders = {step.best for step in content.progress}
    ring, plain = STATES["failed"][0], "rgba(0,0,0,0.25)"
    for place, axis in enumerate(content.axes):
        name = "" if place == 0 else str(place + 1)
        row, column = divmod(place, columns)
        data.append({
            "type": "scatter", "mode": "markers", "xaxis": f"x{name}", "yaxis": f"y{name}", "showlegend": False,
            "x": [fraction(axis, t.params.get(axis.path)) for t in trials],
            "y": in_percent([content.value(t) for t in trials]),
            "hovertemplate": [hover(content, t.number) for t in trials],
            "marker": {
                "color": [t.number for t in trials], "colorscale": "Cividis", "reversescale": True,
                "showscale": place == 0, "colorbar": {"title": {"text": "trial"}, "thickness": 14},
                "symbol": ["circle" if t.feasible else "circle-open" for t in trials], "size": 9,
                "line": {"width": [2 if t.number in leaders else 1 for t in trials],
                         "color": [ring if t.number in leaders else plain for t in trials]},
            },
        })  # fmt: skip
        if content.best is not None:
            best = content.trial(content.best)
            data.append({
                "type": "scatter", "mode": "markers", "xaxis": f"x{name}", "yaxis": f"y{name}", "showlegend": False,
                "x": [fraction(axis, best.params.get(axis.path))], "y": in_percent([content.value(best)]),
                "hovertemplate": hover(content, best.number),
                "marker": {"symbol": "star", "size": 17, "color": ACCENT, "line": {"width": 1, "color": "black"}},
            })  # fmt: skip
        lacking = any(axis.path not in trial.params for trial in trials)
        marks = ([(NOT_SET, "not set")] if lacking else []) + ticks(axis)
        layout[f"xaxis{name}"] = axis_of(
            axis.label + (", log" if axis.log else ""), domain=[column * width, (column + 0.84) * width],
            anchor=f"y{name}", tickvals=[p for p, _ in marks], ticktext=[escape(t) for _, t in marks],
            range=[marks[0][0] - 0.1, 1.1],
        )  # fmt: skip
        layout[f"yaxis{name}"] = axis_of(
            f"{content.measure} (%)" if column == 0 else "", anchor=f"x{name}",
            domain=[1 - (row + 0.72) * height, 1 - row * height], **({"matches": "y"} if place else {}),
        )  # fmt: skip
    return {"data": data, "layout": layout_of(60 + 260 * rows, **layout)}


def importance_bars(content: Content) -> Plot:
    labels = {axis.path: axis.label for axis in content.axes}
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"annotations": [], "shapes": [], "showlegend": False}
    for name, domain, each in zip(("", "2"), ([0, 0.42], [0.58, 1]), content.importances, strict=True):
        title, below = each.metric.replace("_", " "), ""
        if each.entries:
            title += f": {each.trials} trials, out-of-bag R² {each.r2:.2f}"
            title += "<br>R² is not above 0: nothing can be read off" if each.note else ""
            below = "share of variance"
            entries, blue = each.entries[::-1], STATES["complete"][0]
            data.append({
                "type": "bar", "orientation": "h", "xaxis": f"x{name}", "yaxis": f"y{name}",
                "x": [e.share for e in entries], "y": [escape(labels.get(e.path, e.path)) for e in entries],
                "marker": {"color": [blue if e.above_noise and not each.note else "#b9c7d1" for e in entries]},
                "error_x": {"type": "data", "symmetric": False, "array": [max(0, e.high - e.share) for e in entries],
                            "arrayminus": [max(0, e.share - e.low) for e in entries], "thickness": 1.3},
                "hovertemplate": [f"{escape(e.path)}: {e.share:.2f} ({e.low:.2f} to {e.high:.2f})<extra></extra>"
                                  for e in entries],
            })  # fmt: skip
            layout["shapes"].append({"type": "line", "xref": f"x{name}", "yref": f"y{name} domain", "x0": each.noise,
                                     "x1": each.noise, "y0": 0, "y1": 1,
                                     "line": {"dash": "dash", "color": STATES["failed"][0]}})  # fmt: skip
        else:
            layout["annotations"].append({"xref": "paper", "yref": "paper", "x": sum(domain) / 2, "y": 0.5,
                                          "text": escape(each.note), "showarrow": False})  # fmt: skip
        layout["annotations"].append({"xref": f"x{name} domain", "yref": "paper", "x": 0.5, "y": 1.0,
                                      "yanchor": "bottom", "text": title, "showarrow": False})  # fmt: skip
        layout[f"xaxis{name}"] = axis_of(below, domain=domain, range=[0, 1.02], anchor=f"y{name}")
        layout[f"yaxis{name}"] = axis_of("", anchor=f"x{name}")
        if not each.entries:
            layout[f"xaxis{name}"]["visible"] = layout[f"yaxis{name}"]["visible"] = False
    count = max((len(each.entries) for each in content.importances), default=0)
    return {"data": data, "layout": layout_of(130 + 34 * max(3, count), **layout) | {
        "margin": {"l": 62, "r": 20, "t": 62, "b": 52}}}  # fmt: skip


def timeline(content: Content) -> Plot:
    unit, name, origin = clock_of(content)
    groups: dict[str, list[Any]] = {}
    for bar in content.timeline:
        groups.setdefault(bar.outcome, []).append(bar)
    data = []
    for outcome, bars in groups.items():
        colour, label = OUTCOMES.get(outcome, ("#666666", outcome))
        data.append({
            "type": "bar", "orientation": "h", "name": escape(label), "marker": {"color": colour}, "width": 0.75,
            "y": [bar.trial for bar in bars], "base": [(bar.started_ms - origin) / unit for bar in bars],
            "x": [(bar.ended_ms - bar.started_ms) / unit for bar in bars],
            "hovertemplate": [
                f"trial {bar.trial}, attempt {bar.token}: {escape(label)}<br>{escape(bar.host)} {escape(bar.device)}"
                f"<br>{(bar.ended_ms - bar.started_ms) / 60_000:.1f} min<extra></extra>" for bar in bars
            ],
        })  # fmt: skip
    count = len(content.trials)
    return {"data": data, "layout": layout_of(
        min(1200, 170 + 17 * count), barmode="overlay", bargap=0.25,
        xaxis=axis_of(f"{name} since the study was created"), yaxis=axis_of("trial", autorange="reversed"),
    )}  # fmt: skip
