"""The browser's figures about results: the trade-off, the search's progress, learning curves."""

from __future__ import annotations

from typing import Any

from study.figure_style import ACCENT, LABELS, STATES
from study.report.content import Content
from study.report.style import SYMBOLS, Plot, axis_of, hover, in_percent, layout_of


def _points(content: Content, trials: list[Any], name: str, **marker: Any) -> dict[str, Any]:
    return {
        "type": "scatter", "mode": "markers", "name": name, "x": in_percent([t.clean_accuracy for t in trials]),
        "y": in_percent([t.robust_accuracy for t in trials]), "marker": marker,
        "hovertemplate": [hover(content, t.number) for t in trials],
    }  # fmt: skip


def _line(x: list[Any], y: list[Any], name: str, **line: Any) -> dict[str, Any]:
    return {"type": "scatter", "mode": "lines", "name": name, "x": x, "y": y, "line": line, "hoverinfo": "skip"}


def tradeoff(content: Content) -> Plot:
    data = []
    for state in ("failed", "running", "pruned"):
        if rows := content.in_state(state):
            name = f"{LABELS[state]} (not in the front)"
            data.append(
                _points(content, rows, name, color=STATES[state][0], symbol=SYMBOLS[state], opacity=0.6, size=8)
            )
    front = [content.trial(number) for number in content.pareto]
    if front:
        clean, robust = (
            in_percent([getattr(t, name) for t in front]) for name in ("clean_accuracy", "robust_accuracy")
        )
        data.append(_line(clean, robust, "Pareto front", color=ACCENT, width=2, shape="vh"))
    blue = STATES["complete"][0]
    complete = content.in_state("complete")
    for feasible, name in ((True, "full length"), (False, "full length, below a floor")):
        if rows := [t for t in complete if bool(t.feasible) is feasible]:
            colour = blue if feasible else "white"
            data.append(_points(content, rows, name, color=colour, size=10, line={"color": blue, "width": 1.5}))
    for reference, symbol, name in (
        ("paper", "diamond-open", "the paper's defaults"), ("warm start", "square-open", "warm start"),
    ):  # fmt: skip
        if rows := [t for t in complete if t.reference == reference]:
            data.append(_points(content, rows, name, color="#CC79A7", symbol=symbol, size=17, line={"width": 2}))
    if content.best is not None:
        best = content.trial(content.best)
        trace = _points(content, [best], f"best: trial {best.number}, 95 % of its dev images", color=ACCENT, size=13)
        for which, error in (("error_x", best.clean_error), ("error_y", best.robust_error)):
            trace[which] = {"type": "constant", "value": 100 * (error or 0), "color": ACCENT, "thickness": 1.2}
        data.append(trace)
    if content.unmodified:
        x, y = ([100 * content.unmodified[name]] for name in ("clean_accuracy", "robust_accuracy"))
        data.append(
            {"type": "scatter", "mode": "markers", "name": "unmodified CLIP", "x": x, "y": y,
             "marker": {"symbol": "star", "size": 16, "color": "black"},
             "hovertemplate": "unmodified CLIP<br>clean %{x:.1f} %, robust %{y:.1f} %<extra></extra>"}
        )  # fmt: skip
    shapes = []
    for name, floor in content.floors.items():
        a, b = ("x", "y") if name == "clean_accuracy" else ("y", "x")
        shade = {"type": "rect", f"{a}0": 0, f"{a}1": 100 * floor, f"{b}ref": "paper", f"{b}0": 0, f"{b}1": 1,
                 "fillcolor": "#888", "opacity": 0.13, "line": {"width": 0}, "layer": "below"}  # fmt: skip
        edge = {"type": "line", f"{a}0": 100 * floor, f"{a}1": 100 * floor, f"{b}ref": "paper", f"{b}0": 0, f"{b}1": 1,
                "line": {"dash": "dash", "width": 1}}  # fmt: skip
        shapes += [shade, edge]
    ranges = [_range(data, name, content.floors.get(metric)) for name, metric in
              (("x", "clean_accuracy"), ("y", "robust_accuracy"))]  # fmt: skip
    return {"data": data, "layout": layout_of(
        520, shapes=shapes, xaxis=axis_of("clean accuracy (%)", range=ranges[0]),
        yaxis=axis_of("robust accuracy (%)", range=ranges[1]),
    )}  # fmt: skip


def _range(data: list[dict[str, Any]], name: str, floor: float | None) -> list[float] | None:
    """Ends of an axis that hold every point, the floor, and a margin; the shading would stretch it to 0."""
    values = [value for trace in data for value in trace[name]] + ([100 * floor] if floor is not None else [])
    for trace in data:
        if error := trace.get(f"error_{name}"):
            values += [trace[name][0] - error["value"], trace[name][0] + error["value"]]
    if not values:
        return None
    margin = 0.08 * (max(values) - min(values)) or 1.0
    return [min(values) - margin, max(values) + margin]


def progress(content: Content) -> Plot:
    data: list[dict[str, Any]] = []
    places = {step.trial: place for place, step in enumerate(content.progress, start=1)}
    for state in ("failed", "pruned", "complete"):
        if rows := [t for t in content.in_state(state) if t.number in places]:
            data.append({
                "type": "scatter", "mode": "markers", "name": LABELS[state], "x": [places[t.number] for t in rows],
                "y": in_percent([content.value(t) for t in rows]),
                "marker": {"color": STATES[state][0], "symbol": SYMBOLS[state], "size": 8, "opacity": 0.75},
                "hovertemplate": [hover(content, t.number) for t in rows],
            })  # fmt: skip
    known = [(place, step) for place, step in enumerate(content.progress, start=1) if step.best is not None]
    if known:
        y = in_percent([content.value(step) for _, step in known])
        trace = _line([place for place, _ in known], y, "best so far", color=ACCENT, width=2.5, shape="hv")
        trace.pop("hoverinfo")
        trace["hovertemplate"] = [
            f"best so far: trial {step.best}, {value:.1f} %<br>after {step.device_seconds / 3600:.2f} device hours"
            "<extra></extra>" for (_, step), value in zip(known, y, strict=True)
        ]  # fmt: skip
        data.append(trace)
    shapes = _level(content, content.level, "x")
    return {"data": data, "layout": layout_of(
        380, xaxis=axis_of("finished trials", rangemode="tozero"),
        yaxis=axis_of(f"{content.measure} (%)"), **shapes,
    )}  # fmt: skip


def _level(content: Content, value: float, axis: str) -> dict[str, Any]:
    """The unmodified CLIP as a dotted line with its name."""
    if not content.unmodified:
        return {}
    number = axis.removeprefix("x")
    y = 100 * value
    line = {"type": "line", "xref": f"x{number} domain", "x0": 0, "x1": 1, "yref": f"y{number}", "y0": y, "y1": y,
            "line": {"dash": "dot", "width": 1.3}}  # fmt: skip
    text = {"xref": f"x{number} domain", "x": 1, "xanchor": "right", "yref": f"y{number}", "y": y, "yanchor": "bottom",
            "text": "unmodified CLIP", "showarrow": False, "font": {"size": 11}}  # fmt: skip
    return {"shapes": [line], "annotations": [text]}


def curves(content: Content) -> Plot:
    data: list[dict[str, Any]] = []
    seen: set[str] = set()
    for trial in sorted((t for t in content.trials if t.curve), key=lambda t: t.number == content.best):
        best = trial.number == content.best
        colour = ACCENT if best else STATES[trial.state][0]
        name = f"best: trial {trial.number}" if best else LABELS[trial.state]
        for metric, axis in (("robust_accuracy", ""), ("clean_accuracy", "2")):
            data.append({
                "type": "scatter", "mode": "lines+markers", "name": name, "legendgroup": name,
                "showlegend": name not in seen, "xaxis": f"x{axis}", "yaxis": f"y{axis}",
                "x": [e.epoch for e in trial.curve], "y": in_percent([getattr(e, metric) for e in trial.curve]),
                "line": {"color": colour, "width": 3 if best else 1.2}, "opacity": 1 if best else 0.7,
                "marker": {"color": colour, "symbol": SYMBOLS[trial.state],
                           "size": [4] * (len(trial.curve) - 1) + [10]},
                "hovertemplate": hover(content, trial.number),
            })  # fmt: skip
            seen.add(name)
    clip = content.unmodified or {}
    levels = [_level(content, clip.get(f"{name}_accuracy", 0.0), x) for name, x in (("robust", "x"), ("clean", "x2"))]
    joined = {key: [item for level in levels for item in level.get(key, [])] for key in ("shapes", "annotations")}
    return {"data": data, "layout": layout_of(
        420, xaxis=axis_of("epoch", domain=[0, 0.46], dtick=_epoch_step(content)),
        xaxis2=axis_of("epoch", domain=[0.54, 1], dtick=_epoch_step(content)), yaxis=axis_of("robust accuracy (%)"),
        yaxis2=axis_of("clean accuracy (%)", anchor="x2"), **joined,
    )}  # fmt: skip


def _epoch_step(content: Content) -> int:
    return max(1, max((t.planned_epochs for t in content.trials), default=1) // 10)
