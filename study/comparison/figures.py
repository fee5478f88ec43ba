"""Figures of a comparison, from its record: clean against robust accuracy, every final set, the searches."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate
from typing import Any

from study.comparison.record import finals
from study.figures.content import Bars, Figure, Mark, Panel, Scale, Series
from study.figures.style import series
from study.statistics import METRICS, mean_accuracy, set_accuracy

SIDE_BY_SIDE = 4  # final sets; of more, the two accuracies stand below each other
Record = Mapping[str, Any]


def figures(record: Record) -> list[Figure]:
    """Every figure of the report."""
    return [_accuracy(record), _sets(record), _search(record)]


def _accuracy(record: Record) -> Figure:
    """Means over each group of the final sets: a dot a seed, the mean with its deviation."""
    groups = record["groups"]
    panels = tuple(_means(record, group, group["title"] if len(groups) > 1 else "") for group in groups)
    title = f"{record['name']}: every seed, and mean ± standard deviation"
    return Figure("comparison-accuracy", title, panels, 7.5 if len(groups) == 1 else 12.0, 5.4, columns=len(groups))


def _means(record: Record, group: Record, title: str) -> Panel:
    marks: list[Mark] = []
    for place, (label, method) in enumerate(record["methods"].items()):
        x, y = (
            tuple(100 * mean_accuracy(final["datasets"], group["sets"], name) for final in finals(method))
            for name in METRICS
        )
        marks.append(Series(series(place), x, y, size=5.0, opacity=0.45))
        clean, robust = (group["methods"][label][name] for name in METRICS)
        ends = [((100 * (found["deviation"] or 0.0),) * 2,) for found in (clean, robust)]
        marks.append(Series(series(place), (100 * clean["mean"],), (100 * robust["mean"],), label, size=9.0,
                            x_errors=ends[0], y_errors=ends[1]))  # fmt: skip
    x, y = ((100 * group["unmodified"][name],) for name in METRICS)
    marks.append(Series("unmodified", x, y, "unmodified CLIP", size=12.0))
    scales = [Scale(f"{name.replace('_', ' ')}, mean over the {title or 'final sets'} (%)") for name in METRICS]
    return Panel(tuple(marks), scales[0], scales[1], title)


def _sets(record: Record) -> Figure:
    """A dot a seed, a bar at the mean, a dashed line for the unmodified CLIP."""
    every, methods = record["unmodified"]["final"]["datasets"], record["methods"]
    clip = {name: every[name] for group in record["groups"] for name in group["sets"]}
    step = 0.8 / len(methods)
    panels = []
    for metric in METRICS:
        marks: list[Mark] = []
        for place, (label, method) in enumerate(methods.items()):
            centres = tuple(column + (place - (len(methods) - 1) / 2) * step for column in range(len(clip)))
            values = [
                [100 * set_accuracy(point["datasets"][name], metric) for point in finals(method)] for name in clip
            ]
            means = tuple(sum(each) / len(each) for each in values)
            marks.append(Bars(series(place), centres, means, thickness=0.86 * step, opacity=0.3, upright=True))
            x = tuple(at for centre, each in zip(centres, values, strict=True)
                      for at in spread_out(centre, len(each), 0.5 * step))  # fmt: skip
            marks.append(Series(series(place), x, tuple(value for each in values for value in each), label, size=4.0))
        levels = [100 * set_accuracy(scores, metric) for scores in clip.values()]
        ends = tuple(at for column in range(len(clip)) for at in (column - 0.45, column + 0.45, None))
        y = tuple(at for level in levels for at in (level, level, None))
        marks.append(Series("rule", ends, y, "unmodified CLIP", dash="dash", width=1.3))
        names = tuple((float(place), name) for place, name in enumerate(clip))
        scale = Scale(f"{metric.split('_')[0]} accuracy (%)", low=0)
        panels.append(Panel(tuple(marks), Scale(ticks=names, grid=False), scale))
    columns = 2 if len(clip) <= SIDE_BY_SIDE else 1
    apart = "".join(f"; {group['title']}: {', '.join(group['sets'])}" for group in record["groups"][1:])
    width = max(8.0, 2.2 * len(clip) + 3.5) if columns == 2 else min(16.0, 1.1 * len(clip) + 3.0)
    title = f"{record['name']}: final sets, every seed and the mean{apart}"
    height = 4.8 if columns == 2 else 8.4
    return Figure("comparison-sets", title, tuple(panels), width, height, columns=columns)


def spread_out(centre: float, number: int, width: float) -> list[float]:
    """Places of a column's dots, side by side."""
    return [centre + (place - (number - 1) / 2) * width / max(1, number - 1) for place in range(number)]


def _search(record: Record) -> Figure:
    """Best feasible goal metric on the dev sets after so many trials; every trial as a dot, hollow below a floor."""
    metric = record["setting"]["goal"]["metric"]
    longest = max(len(method["search"]["trials"]) for method in record["methods"].values())
    marks: list[Mark] = []
    for place, (label, method) in enumerate(record["methods"].items()):
        trials = list(enumerate(method["search"]["trials"], start=1))
        for feasible in (True, False):
            own = [
                (at, 100 * t[metric]) for at, t in trials if bool(t["feasible"]) is feasible and t[metric] is not None
            ]
            if own:
                marks.append(Series(series(place), tuple(at for at, _ in own), tuple(y for _, y in own), size=5.0,
                                    fill="full" if feasible else "none", opacity=0.5))  # fmt: skip
        reached = [100 * t[metric] if t["feasible"] and t["state"] == "complete" else -1.0 for _, t in trials]
        best = [(at, value) for at, value in enumerate(accumulate(reached, max), start=1) if value >= 0]
        marks.append(Series(series(place), tuple(at for at, _ in best), tuple(y for _, y in best), label, width=1.8,
                          shape="after"))  # fmt: skip
    marks.append(Series("rule", (), (), "below a floor", size=5.0, fill="none"))
    scales = Scale("trials", 0.5, longest + 0.5, whole=True), Scale(f"{metric.replace('_', ' ')} on the dev sets (%)")
    title = f"{record['name']}: best so far, and every trial"
    return Figure("comparison-search", title, (Panel(tuple(marks), scales[0], scales[1]),), 8.0, 5.0)
