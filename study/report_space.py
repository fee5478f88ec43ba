"""Figures of a report about the search space: parallel coordinates, slices, importances."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from study.report_content import Axis, Content
from study.report_style import ACCENT, GREY, STATES, new_figure, percent_axis, whole_numbers

__all__ = ["fraction", "importance_bars", "panels", "parallel", "slices", "ticks"]

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


def parallel(content: Content) -> Figure:
    """One line a trial through its parameters to its accuracies; full-length trials coloured by the goal's metric."""
    columns = _columns(content)
    figure, ((axes,),) = new_figure(max(7.0, 1.75 * len(columns) + 1.2), 5.2)
    complete = content.in_state("complete")
    values = [content.value(trial) for trial in complete]
    norm = Normalize(min(values, default=0), max(values, default=1))
    colours = colormaps["viridis"]
    for trial in content.in_state("pruned"):
        axes.plot(
            range(len(columns)), [_place(column, trial) for column in columns], color=GREY, alpha=0.25, linewidth=0.9
        )
    for trial in sorted(complete, key=lambda t: content.value(t)):
        best = trial.number == content.best
        axes.plot(
            range(len(columns)), [_place(column, trial) for column in columns], linewidth=3.0 if best else 1.3,
            color=colours(norm(content.value(trial))), alpha=1.0 if best else 0.8,
            linestyle="-" if trial.feasible else (0, (4, 2)), marker="o" if best else None, markersize=5,
            markeredgecolor="black",
        )  # fmt: skip
    for place, column in enumerate(columns):
        _draw_axis(axes, place, column, content)
    axes.set_xlim(-0.35, len(columns) - 0.4)
    axes.set_ylim(NOT_SET - 0.06, 1.05)
    axes.set_axis_off()
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, pad=0.01, fraction=0.02, aspect=30)
    bar.set_label(f"{content.measure} (%)")
    percent_axis(bar.ax, "y")
    figure.suptitle(
        f"{content.study}: parameters to accuracies\nbold: best; dashed: below a floor; grey: stopped early",
        fontsize=11,
    )
    return figure


def _columns(content: Content) -> list[Axis]:
    """The searched parameters, then both accuracies over the range that trials reached."""
    columns = list(content.axes)
    for name in ("clean_accuracy", "robust_accuracy"):
        values = [getattr(trial, name) for trial in content.in_state("complete", "pruned")]
        low, high = min(values, default=0.0), max(values, default=1.0)
        columns.append(Axis(name, name.replace("_", " "), False, low, high if high > low else low + 0.01))
    return columns


def _place(column: Axis, trial: Any) -> float:
    value = getattr(trial, column.path) if column.path.endswith("_accuracy") else trial.params.get(column.path)
    return fraction(column, value)


def _draw_axis(axes: Any, place: int, column: Axis, content: Content) -> None:
    axes.plot([place, place], [0, 1], color="black", linewidth=1, zorder=5)
    accuracy = column.path.endswith("_accuracy")
    for height, text in ticks(column):
        text = f"{100 * float(text):.3g} %" if accuracy else text
        axes.plot([place - 0.025, place], [height, height], color="black", linewidth=1, zorder=5)
        axes.text(
            place - 0.05, height, text, ha="right", va="center", fontsize=8, zorder=6,
            bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8},
        )  # fmt: skip
    lacking = any(column.path not in trial.params for trial in content.in_state("complete", "pruned"))
    if not accuracy and lacking:
        axes.plot([place - 0.04, place + 0.04], [NOT_SET, NOT_SET], color="black", linewidth=1, zorder=5)
        axes.text(place - 0.07, NOT_SET, "not set", ha="right", va="center", fontsize=8, style="italic")
    axes.text(place, 1.04, _wrapped(column.label), ha="center", va="bottom", fontsize=9)


def _wrapped(label: str) -> str:
    return label.replace(" (", "\n(") if "(" in label else label.replace(" ", "\n", 1)


def panels(count: int) -> tuple[int, int]:
    """Rows and columns of so many panels: at most four side by side, the rows about equally full."""
    rows = max(1, math.ceil(count / 4))
    return rows, max(1, math.ceil(count / rows))


def slices(content: Content) -> Figure:
    """The goal's metric over each parameter; darker trials came later, rings were the best when they finished."""
    rows, columns = panels(len(content.axes))
    figure, grid = new_figure(3.0 * columns + 0.9, 2.7 * rows + 0.8, rows, columns, sharey=True)
    complete = content.in_state("complete")
    ends = sorted(trial.number for trial in complete)
    norm = Normalize(min(ends, default=0), max(*ends, 1) if ends else 1)
    colours = colormaps["cividis_r"]
    for place, axes in enumerate(grid.flat):
        if place >= len(content.axes):
            axes.set_visible(False)
            continue
        _slice(axes, content, content.axes[place], norm, colours)
        if place % columns == 0:
            axes.set_ylabel(f"{content.measure} (%)", fontsize=9)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(grid.flat), pad=0.01, fraction=0.03)
    bar.set_label("trial")
    whole_numbers(bar.ax.yaxis)
    figure.suptitle(f"{content.study}: full-length trials by parameter (dev sets)")
    handles = [
        _mark("o", facecolor=GREY, edgecolor="none", label="full length"),
        _mark("o", facecolor="white", edgecolor=GREY, label="below a floor"),
        _mark("o", facecolor="none", edgecolor=STATES["failed"][0], size=9, label="best when it finished"),
        _mark("*", facecolor=ACCENT, edgecolor="black", size=12, label="best"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _mark(marker: str, *, facecolor: str, edgecolor: str, label: str, size: float = 6) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], linestyle="", marker=marker, markerfacecolor=facecolor, markeredgecolor=edgecolor,
                  markersize=size, label=label)  # fmt: skip


def _slice(axes: Any, content: Content, axis: Axis, norm: Any, colours: Any) -> None:
    complete = content.in_state("complete")
    leaders = {step.best for step in content.progress}
    for trial in complete:
        x, y = fraction(axis, trial.params.get(axis.path)), content.value(trial)
        colour = colours(norm(trial.number))
        axes.scatter([x], [y], s=30, facecolors=[colour if trial.feasible else "white"], edgecolors=[colour], zorder=3)
        if trial.number in leaders and trial.number != content.best:
            axes.scatter([x], [y], s=85, facecolors="none", edgecolors=STATES["failed"][0], linewidths=1.3, zorder=2)
        if trial.number == content.best:
            axes.scatter([x], [y], s=150, marker="*", color=ACCENT, edgecolors="black", linewidths=0.7, zorder=4)
    marks = ticks(axis)
    if any(axis.path not in trial.params for trial in complete):
        marks = [(NOT_SET, "not set"), *marks]
    axes.set_xticks([place for place, _ in marks], [text for _, text in marks], fontsize=7.5)
    if len(marks) > 4 and max(len(text) for _, text in marks) > 4:
        axes.tick_params(axis="x", labelrotation=35)
    axes.set_xlim(min(place for place, _ in marks) - 0.08, 1.08)
    axes.set_xlabel(axis.label + (", log" if axis.log else ""), fontsize=9)
    percent_axis(axes, "y")


def importance_bars(content: Content) -> Figure:
    """Share of the accuracy's variance over the space, with what resampling the trials makes of it."""
    count = max((len(each.entries) for each in content.importances), default=0)
    figure, ((left, right),) = new_figure(10.5, 1.9 + 0.38 * max(count, 3), 1, 2)
    for axes, each in zip((left, right), content.importances, strict=True):
        title = each.metric.replace("_", " ")
        if not each.entries:
            axes.text(0.5, 0.5, each.note, ha="center", va="center", transform=axes.transAxes, fontsize=10, color=GREY)
            axes.set_axis_off()
            axes.set_title(title, fontsize=10)
            continue
        _bars(axes, content.axes, each)
        axes.set_title(f"{title}: {each.trials} trials, out-of-bag R² {each.r2:.2f}", fontsize=10)
        if each.note:
            axes.text(0.98, 0.06, "R² is not above 0:\nnothing can be read off", ha="right", va="bottom", fontsize=9,
                      transform=axes.transAxes, color=STATES["failed"][0])  # fmt: skip
    figure.suptitle(f"{content.study}: what moved the accuracies of full-length trials")
    handles, labels = (left if left.get_legend_handles_labels()[0] else right).get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _bars(axes: Any, known: Sequence[Axis], each: Any) -> None:
    names = {axis.path: axis.label for axis in known}
    entries = each.entries[::-1]
    for place, entry in enumerate(entries):
        colour = STATES["complete"][0] if entry.above_noise and not each.note else "#b9c7d1"
        axes.barh(place, entry.share, color=colour, height=0.62)
        axes.plot([entry.low, entry.high], [place, place], color="black", linewidth=1.3)
        for end in (entry.low, entry.high):
            axes.plot([end, end], [place - 0.14, place + 0.14], color="black", linewidth=1.3)
    axes.plot([], [], color="black", linewidth=1.3, label="5 to 95 % over resampled trials")
    axes.axvline(
        each.noise, color=STATES["failed"][0], linestyle="--", linewidth=1.2, label="a column of random numbers"
    )
    axes.set_yticks(range(len(entries)), [names.get(entry.path, entry.path) for entry in entries], fontsize=9)
    axes.set(xlim=(0, 1.02), xlabel="share of variance (total effect)")
    axes.grid(visible=False, axis="y")
