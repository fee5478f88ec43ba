"""Figures about the search space: parallel coordinates, slices, importances, and the heat maps of a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.ticker import MaxNLocator

from study.figures.content import Bars, Cells, Figure, Frame, Mark, Panel, Path, Paths, Rule, Scale, Series, Shade
from study.report.content import Axis, Content, map_axes
from study.report.results import hover, in_percent
from study.results.facts import METRICS, Trial
from study.results.importance import Importances

CROWDED = 0.07  # ticks that are nearer than this would be printed over each other
NOT_SET = -0.14  # place of a conditional parameter that a trial does not have, below the axis
FEW = 10  # full-length trials; with fewer, those that were stopped are shown too
NO_AXES = "This study searches no parameter."
NO_TRIALS = "No trial has reached its full length, and none was stopped early yet."


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


def _ticks(axis: Axis, trials: Sequence[Trial]) -> tuple[tuple[float, str], ...]:
    """The axis' ticks, and `not set` if one of the trials lacks the parameter."""
    lacking = any(axis.path not in trial.params for trial in trials)
    return (*([(NOT_SET, "not set")] if lacking else []), *ticks(axis))


def _empty(content: Content, trials: Sequence[Trial]) -> str:
    return NO_AXES if not content.axes else "" if trials else NO_TRIALS


def parallel(content: Content) -> Figure:
    """Full-length trials coloured by what is compared, those that were stopped early in grey."""
    trials = content.in_state("pruned", "complete")
    complete = content.in_state("complete")
    reached = []
    for name in METRICS:
        values = [100 * getattr(trial, name) for trial in trials]
        low, high = min(values, default=0.0), max(values, default=100.0)
        reached.append(Axis(name, name.replace("_", " ") + " %", False, low, high if high > low else low + 1.0))
    paths = tuple(
        Path(
            (*(fraction(axis, trial.params.get(axis.path)) for axis in content.axes),
             *(fraction(axis, 100 * getattr(trial, axis.path)) for axis in reached)),
            100 * content.value(trial) if trial.state == "complete" else None,
            trial.number == content.best, trial.state == "complete" and not trial.feasible,
        )
        for trial in sorted(trials, key=content.value)
    )  # fmt: skip
    columns = [(axis.label, _ticks(axis, trials)) for axis in content.axes]
    columns += [(axis.label, tuple(ticks(axis))) for axis in reached]
    values = [100 * content.value(trial) for trial in complete]
    shade = _shade(f"{content.measure} (%)", values)
    return Figure(
        "parallel",
        f"{content.study}: parameters to accuracies\nbold: best; dashed: below a floor; grey: stopped early",
        (Panel((Paths(tuple(columns), paths, shade),), empty=_empty(content, trials)),),
        max(7.0, 1.6 * len(columns) + 1.2), 5.2, "Parallel coordinates",
        "Full-length trials from their parameters to their accuracies; grey ones were stopped early. Drag along an "
        "axis to select, drag a name to reorder; 'not set': a conditional parameter that the trial lacks.",
    )  # fmt: skip


def _shade(label: str, values: Sequence[float], **more: Any) -> Shade:
    low, high = min(values, default=0.0), max(values, default=1.0)
    return Shade(label, low, high, **more) if high > low else Shade(label, low - 1, high + 1, **more)


def panels(count: int) -> tuple[int, int]:
    """Rows and columns of so many panels: at most four side by side, the rows about equally full."""
    rows = max(1, math.ceil(count / 4))
    return rows, max(1, math.ceil(count / rows))


def slices(content: Content) -> Figure:
    """What is compared over each parameter; darker trials came later."""
    complete, stopped = content.in_state("complete"), content.in_state("pruned")
    stopped = stopped if len(complete) < FEW else []
    which = "full-length and stopped" if stopped else "full-length"
    rows, columns = panels(len(content.axes))
    empty = _empty(content, [*complete, *stopped])
    texts = {trial.number: hover(content, trial) for trial in [*complete, *stopped]}
    found = tuple(
        _slice(content, axis, complete, stopped, f"{content.measure} (%)" if place % columns == 0 else "", empty, texts)
        for place, axis in enumerate(content.axes)
    )
    shade = Shade("trial", 0, max([1, *(trial.number for trial in complete)]), "cividis_r", whole=True)
    return Figure(
        "slices", f"{content.study}: {which} trials by parameter (dev sets)", found or (Panel(empty=empty),),
        max(6.0, 3.0 * columns + 0.9), 2.7 * rows + 0.8, "Slices",
        "Full-length trials by each parameter; colour is the order of trials. Orange rings were the best when they "
        f"finished, open circles are below a floor, the star is the best. With fewer than {FEW} full-length trials "
        "those that were stopped early are shown too.",
        columns=columns, share_y=True, shade=shade,
    )  # fmt: skip


def _slice(
    content: Content, axis: Axis, complete: Sequence[Trial], stopped: Sequence[Trial], label: str, empty: str,
    hovers: Mapping[int, str],
) -> Panel:  # fmt: skip
    leaders = {step.best for step in content.progress} - {content.best}
    marks: list[Mark] = []

    def add(role: str, trials: Sequence[Trial], label: str, *, shaded: bool = False, **look: Any) -> None:
        if trials:
            x = tuple(fraction(axis, trial.params.get(axis.path)) for trial in trials)
            y = in_percent([content.value(trial) for trial in trials])
            shades = tuple(float(trial.number) for trial in trials) if shaded else ()
            texts = tuple(hovers[trial.number] for trial in trials)
            marks.append(Series(role, x, y, label, texts, shades=shades, **look))

    add("pruned", stopped, "stopped early", size=5.0, opacity=0.6)
    add("leader", [t for t in complete if t.number in leaders], "best when it finished", size=9.5, fill="none")
    add("grey", [t for t in complete if t.feasible], "full length", shaded=True, size=6.2)
    add("grey", [t for t in complete if not t.feasible], "full length, below a floor", shaded=True, size=6.2,
        fill="white")  # fmt: skip
    if content.best is not None:
        add("best star", [content.trial(content.best)], f"best: trial {content.best}", size=12.0)
    marked = _ticks(axis, [*complete, *stopped])
    scale = Scale(axis.label + (", log" if axis.log else ""), marked[0][0] - 0.08, 1.08, marked)
    return Panel(tuple(marks), scale, Scale(label), empty=empty)


def importance_bars(content: Content) -> Figure:
    """Share of the accuracy's variance over the space, with what resampling the trials makes of it."""
    whiskers = "\nwhiskers: 5 to 95 % over resampled trials"
    count = max((len(each.entries) for each in content.importances), default=0)
    return Figure(
        "importances",
        f"{content.study}: what moved the accuracies of full-length trials{whiskers if count else ''}",
        tuple(_importance_panel(content, each) for each in content.importances), 10.5, 2.0 + 0.38 * max(count, 3),
        "Importances",
        "Share of an accuracy's variance over the search space (total effect of a random forest). Whiskers: 5 to 95 % "
        "over resampled trials; dashed: what a column of random numbers gets; pale bars do not rise above it.",
        columns=2,
    )  # fmt: skip


def _importance_panel(content: Content, each: Importances) -> Panel:
    names = {axis.path: axis.label for axis in content.axes}
    title = each.metric.replace("_", " ")
    if not each.entries:
        return Panel(title=title, empty=each.note)
    title += f": {each.trials} trials, out-of-bag R² {each.r2:.2f}"
    title += "\nR² is not above 0: nothing can be read off" if each.note else ""
    placed = list(enumerate(each.entries[::-1]))
    marks: list[Mark] = []
    for role, clear in (("pale", False), ("complete", True)):
        own = [(place, entry) for place, entry in placed if (entry.above_noise and not each.note) is clear]
        if own:
            marks.append(Bars(
                role, tuple(float(place) for place, _ in own), tuple(entry.share for _, entry in own),
                texts=tuple(f"{e.path}: {e.share:.2f} ({e.low:.2f} to {e.high:.2f})" for _, e in own),
                errors=tuple((max(0.0, e.share - e.low), max(0.0, e.high - e.share)) for _, e in own), thickness=0.62,
            ))  # fmt: skip
    marks.append(Rule(each.noise or 0.0, "x", "a column of random numbers", "dash", "noise"))
    named = tuple((float(place), names.get(entry.path, entry.path)) for place, entry in placed)
    scale = Scale("share of variance (total effect)", 0, 1.02)
    return Panel(tuple(marks), scale, Scale(low=-0.6, high=len(placed) - 0.4, ticks=named, grid=False), title)


def grid(content: Content) -> Figure | None:
    """Two heat maps, where `map_axes` says so; a cell below a floor has a star."""
    complete, both = content.in_state("complete"), map_axes(content.axes)
    if both is None or not complete:
        return None
    down, along = both
    rates = len(content.axes) > 2
    cells: dict[tuple[Any, Any], Trial] = {}
    for trial in complete:
        key = (trial.params[down.path], trial.params[along.path])
        other = cells.setdefault(key, trial)  # of several, the first
        if rates and _standing(content, trial) > _standing(content, other):
            cells[key] = trial
    frames = [Frame(down.choices.index(values[down.path]), along.choices.index(values[along.path]), name,
                    "dot" if place else "solid") for place, (name, values) in enumerate(content.marked)]  # fmt: skip
    found = []
    for metric in METRICS:
        rows = [[cells.get((row, column)) for column in along.choices] for row in down.choices]
        values = tuple(in_percent([getattr(cell, metric, None) for cell in row]) for row in rows)
        texts = tuple(tuple(_cell(cell, metric) for cell in row) for row in rows)
        shade = _shade("", [value for row in values for value in row if value is not None], colours="cividis")
        named = [tuple((float(n), axis.text(value)) for n, value in enumerate(axis.choices)) for axis in (along, down)]
        scales = Scale(along.label, ticks=named[0], grid=False), Scale(down.label, ticks=named[1], grid=False)
        found.append(Panel((Cells(values, texts, shade), *frames), *scales, metric.replace("_", " ")))
    below = "" if all(trial.feasible for trial in cells.values()) else "; *: below a floor"
    best = ", best learning rate of each cell" if rates else ""
    return Figure(
        "grid", f"{content.study}: accuracy on the dev sets (%){best}{below}", tuple(found),
        3.0 + 1.7 * len(along.choices), 1.9 + 0.7 * len(down.choices), "Grid",
        f"Both accuracies (%) of every cell's full-length trial{best}; a star: below a floor.", columns=2,
    )  # fmt: skip


def _standing(content: Content, trial: Trial) -> tuple[bool, float]:
    """What the learning rates of a cell are compared by: the floors, then the goal."""
    return bool(trial.feasible), content.value(trial)


def _cell(trial: Trial | None, metric: str) -> str:
    return "-" if trial is None else f"{100 * getattr(trial, metric):.1f}{'' if trial.feasible else '*'}"
