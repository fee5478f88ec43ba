"""Figures of a report about results: the trade-off, learning curves, and the search's progress."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from optuna.distributions import CategoricalDistribution

from study.console import percent
from study.figure_style import ACCENT, GREY, LABELS, OUTCOMES, STATES, new_figure, percent_axis, whole_numbers
from study.report.content import Axis, Bar, Content
from study.report.space import NOT_SET, clock_of, fraction, panels, ticks
from study.results.facts import METRICS, plain
from study.spec.dimension import Dimension, shown
from study.spec.space import known_paths
from study.store.rows import StudyRow, TrialRow
from trainers.schema.records import EpochRecord

CROWDED_ACCURACY = 0.012  # of clean accuracy
REFERENCES = {"paper": ("D", "the paper's defaults"), "warm start": ("s", "warm start")}


def tradeoff(content: Content) -> Figure:
    """Clean against robust accuracy. Only full-length trials make the front; floors are lines, beyond them grey."""
    figure, ((axes,),) = new_figure(7.5, 5.4)
    for state in ("failed", "running", "pruned"):
        rows = content.in_state(state)
        colour, marker = STATES[state]
        axes.scatter(
            [t.clean_accuracy for t in rows], [t.robust_accuracy for t in rows], color=colour, marker=marker, s=22,
            alpha=0.55, linewidths=0, label=f"{LABELS[state]} (not in the front)" if rows else None,
        )  # fmt: skip
    complete = content.in_state("complete")
    _complete(axes, [t for t in complete if t.feasible], hollow=False)
    _complete(axes, [t for t in complete if not t.feasible], hollow=True)
    _front(axes, content)
    for reference, (marker, label) in REFERENCES.items():
        rows = [t for t in complete if t.reference == reference]
        axes.scatter(
            [t.clean_accuracy for t in rows], [t.robust_accuracy for t in rows], facecolors="none",
            edgecolors="#CC79A7", marker=marker, s=95, linewidths=1.6, label=label if rows else None, zorder=4,
        )  # fmt: skip
    if content.unmodified:
        axes.scatter(
            [content.unmodified["clean_accuracy"]], [content.unmodified["robust_accuracy"]], color="black", marker="*",
            s=150, label="unmodified CLIP", zorder=5,
        )  # fmt: skip
    _floors(axes, content)
    axes.set(xlabel="clean accuracy (%)", ylabel="robust accuracy (%)", title=f"{content.study}: trade-off (dev sets)")
    axes.margins(0.08)
    percent_axis(axes, "x")
    percent_axis(axes, "y")
    _legend_below(figure, axes)
    return figure


def _complete(axes: Any, rows: list[Any], *, hollow: bool) -> None:
    colour, marker = STATES["complete"]
    axes.scatter(
        [t.clean_accuracy for t in rows], [t.robust_accuracy for t in rows], marker=marker, s=46,
        facecolors="white" if hollow else colour, edgecolors=colour, linewidths=1.2, zorder=3,
        label=("full length, below a floor" if hollow else "full length") if rows else None,
    )  # fmt: skip


def _front(axes: Any, content: Content) -> None:
    """The front as a staircase, with numbers, and the best trial with the interval of its dev images."""
    front = [content.trial(number) for number in content.pareto]
    if front:
        x, y = [t.clean_accuracy for t in front], [t.robust_accuracy for t in front]
        axes.step(x, y, where="pre", color=ACCENT, linewidth=1.6, label="Pareto front", zorder=2)
    before, above = -1.0, True  # the last number's place, and its side
    for trial in front:
        if trial.number != content.best:
            clean = trial.clean_accuracy or 0.0
            above = not above if clean - before < CROWDED_ACCURACY else True
            before = clean
            axes.annotate(
                str(trial.number), (trial.clean_accuracy, trial.robust_accuracy), textcoords="offset points",
                xytext=(7, 6) if above else (-3, -15), fontsize=8,
            )  # fmt: skip
    if content.best is not None:
        best = content.trial(content.best)
        axes.errorbar(
            best.clean_accuracy, best.robust_accuracy, xerr=best.clean_error, yerr=best.robust_error, fmt="o",
            markersize=9, color=ACCENT, capsize=3, linewidth=1.2, zorder=6,
            label=f"best: trial {best.number}, 95 % of its dev images",
        )  # fmt: skip


def _floors(axes: Any, content: Content) -> None:
    axes.autoscale_view()
    for name, floor in content.floors.items():
        upright = name == "clean_accuracy"
        low = (axes.get_xlim() if upright else axes.get_ylim())[0]
        line, span = (axes.axvline, axes.axvspan) if upright else (axes.axhline, axes.axhspan)
        line(floor, color="black", linestyle="--", linewidth=1, label=f"floor of {name.replace('_', ' ')}")
        if low < floor:
            span(low, floor, color=GREY, alpha=0.12, linewidth=0)
        (axes.set_xlim if upright else axes.set_ylim)(min(low, floor), None)


def _legend_below(figure: Figure, axes: Any, columns: int = 3) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def curves(content: Content) -> Figure:
    """Robust and clean accuracy by epoch, one line a trial; where it was stopped or failed, a marker."""
    figure, ((left, right),) = new_figure(10.5, 4.8, 1, 2)
    shown = [trial for trial in content.trials if trial.curve]
    for axes, metric in ((left, "robust_accuracy"), (right, "clean_accuracy")):
        seen: set[str] = set()
        for trial in sorted(shown, key=lambda t: t.number == content.best):  # the best on top
            _curve(axes, trial, metric, best=trial.number == content.best, seen=seen)
        if content.unmodified:
            axes.axhline(
                content.unmodified[metric], color="black", linestyle=":", linewidth=1.3, label="unmodified CLIP"
            )
        if metric in content.floors:
            axes.axhline(content.floors[metric], color="black", linestyle="--", linewidth=1, label="floor")
        longest = max((t.planned_epochs for t in shown), default=1)
        axes.set(xlabel="epoch", ylabel=f"{metric.replace('_', ' ')} (%)", xlim=(0.7, longest + 0.3))
        whole_numbers(axes.xaxis)
        percent_axis(axes, "y")
    figure.suptitle(f"{content.study}: learning curves (dev sets)")
    labels: dict[str, Any] = {}
    for axes in (left, right):
        labels |= {text: handle for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    if labels:
        figure.legend(labels.values(), labels, loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    return figure


def _curve(axes: Any, trial: Any, metric: str, *, best: bool, seen: set[str]) -> None:
    colour, marker = (ACCENT, "o") if best else STATES[trial.state]
    label = f"best: trial {trial.number}" if best else LABELS[trial.state]
    epochs, values = [e.epoch for e in trial.curve], [getattr(e, metric) for e in trial.curve]
    axes.plot(
        epochs, values, color=colour, linewidth=2.4 if best else 1.0, alpha=1.0 if best else 0.65,
        label=None if label in seen else label, marker=marker, markevery=[-1], markersize=7 if best else 6,
    )  # fmt: skip
    seen.add(label)


def progress(content: Content) -> Figure:
    """The best trial known after each one that finished: by number of trials, and by devices' time."""
    figure, ((left, right),) = new_figure(10.5, 4.2, 1, 2, sharey=True)
    steps = content.progress
    hours = [step.device_seconds / 3600 for step in steps]
    for axes, places, label in (
        (left, list(range(1, len(steps) + 1)), "finished trials"), (right, hours, "device hours of finished trials"),
    ):  # fmt: skip
        for state in ("failed", "pruned", "complete"):
            points = [
                (place, content.value(trial))
                for place, step in zip(places, steps, strict=True)
                if (trial := content.trial(step.trial)).state == state and trial.robust_accuracy is not None
            ]
            if points:
                colour, marker = STATES[state]
                axes.scatter(*zip(*points, strict=True), color=colour, marker=marker, s=24, alpha=0.7, linewidths=0,
                             label=LABELS[state])  # fmt: skip
        known = [
            (place, content.value(step)) for place, step in zip(places, steps, strict=True) if step.best is not None
        ]
        if known:
            x, y = zip(*known, strict=True)
            axes.step([*x, places[-1]], [*y, y[-1]], where="post", color=ACCENT, linewidth=2, label="best so far")
        if content.unmodified:
            axes.axhline(content.level, color="black", linestyle=":", linewidth=1.3, label="unmodified CLIP")
        axes.set(xlabel=label)
        percent_axis(axes, "y")
    left.set_ylabel(f"{content.measure} (%)")
    whole_numbers(left.xaxis)
    figure.suptitle(f"{content.study}: progress of the search (dev sets)")
    _legend_below(figure, left, columns=5)
    return figure


# Two heat maps, clean and robust accuracy, of a study that searched exactly two paths with choices.
#
# A cell below a floor has a star.

Cell = tuple[int, int]  # row, column
CALIBRATION = ("method.scale_ratio", "method.logit_scale")


def draw_grid(study: StudyRow, trials: Sequence[TrialRow], path: Path) -> bool:
    """Draw the heat maps if the study has a grid and a trial; whether it did."""
    found = _grid_of(study)
    cells = grid_cells(found, trials) if found else {}
    if not found or not cells:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows, columns = (_choices(dimension) for dimension in found)
    size = (1.5 + 0.85 * len(columns), 1.7 + 0.7 * len(rows))
    figure = Figure(figsize=(2 * size[0], size[1]), layout="constrained")  # no pyplot: also outside the main thread
    FigureCanvasAgg(figure)
    both = figure.subplots(1, 2)
    for axes, metric in zip(both, METRICS, strict=True):
        _heat_map(axes, study, found, cells, metric)
    _frames_legend(figure, marked_cells(study, found))
    below = "" if all(cell.best_feasible for cell in cells.values()) else "; *: below a floor"
    figure.suptitle(f"{study.name}: accuracy on the dev sets (%){below}")
    figure.savefig(path, dpi=150)
    return True


def _grid_of(study: StudyRow) -> tuple[Dimension, Dimension] | None:
    dimensions = study.spec.dimensions()
    if len(dimensions) != 2 or not all(isinstance(d.distribution, CategoricalDistribution) for d in dimensions):
        return None
    return dimensions[0], dimensions[1]


def _choices(dimension: Dimension) -> list[Any]:
    choices = list(dict.fromkeys(dimension.distribution.choices))
    return sorted(choices) if all(isinstance(value, int | float) for value in choices) else choices


def grid_cells(found: tuple[Dimension, Dimension], trials: Sequence[TrialRow]) -> dict[Cell, EpochRecord]:
    """The last record of every cell's full-length trial; of several, the first."""
    rows, columns = (_choices(dimension) for dimension in found)
    cells: dict[Cell, EpochRecord] = {}
    for trial in trials:
        if trial.state == "complete" and trial.last:
            cell = rows.index(trial.params[found[0].path]), columns.index(trial.params[found[1].path])
            cells.setdefault(cell, trial.last)
    return cells


def marked_cells(study: StudyRow, found: tuple[Dimension, Dimension]) -> list[tuple[str, Cell]]:
    """Cells with a name: the fields' defaults, which are the paper's, and AGFT without calibration (1 and 1)."""
    known = known_paths(study.spec.method.name)
    if any(d.path not in known for d in found):
        return []  # methods against something: none of the cells is a paper's
    places = [
        ("the paper's setting", [plain(d, known[d.path][0].get_default(call_default_factory=True)) for d in found])
    ]
    if {d.path for d in found} == set(CALIBRATION) and all(d.wrapper in ("", "of_model") for d in found):
        places.append(("no calibration (1 and 1)", [1.0, 1.0]))
    return [
        (name, (_choices(found[0]).index(values[0]), _choices(found[1]).index(values[1])))
        for name, values in places
        if all(value in _choices(d) for value, d in zip(values, found, strict=True))
    ]


def _heat_map(
    axes: Any, study: StudyRow, found: tuple[Dimension, Dimension], cells: dict[Cell, EpochRecord], metric: str
) -> None:
    rows, columns = (_choices(dimension) for dimension in found)
    values = [[100 * cells[r, c].at_best(metric) if (r, c) in cells else float("nan") for c in range(len(columns))]
              for r in range(len(rows))]  # fmt: skip
    image = axes.imshow(values, cmap="cividis", aspect="auto", origin="lower")
    axes.figure.colorbar(image, ax=axes)
    low, high = image.get_clim()
    for row in range(len(rows)):
        for column in range(len(columns)):
            value = values[row][column]
            text = "-" if value != value else f"{value:.1f}" + ("" if cells[row, column].best_feasible else "*")
            dark = value == value and value < (low + high) / 2
            axes.text(column, row, text, ha="center", va="center", color="white" if dark else "black")
    for place, (_, (row, column)) in enumerate(marked_cells(study, found)):
        axes.add_patch(_frame(place, (column - 0.46, row - 0.44), 0.92, 0.88))
    axes.set(
        xticks=range(len(columns)), xticklabels=[shown(found[1].path, value) for value in columns],
        yticks=range(len(rows)), yticklabels=[shown(found[0].path, value) for value in rows],
        xlabel=_name(found[1]), ylabel=_name(found[0]), title=metric.replace("_", " "),
    )  # fmt: skip


def _frame(place: int, corner: tuple[float, float], width: float, height: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(
        corner, width, height, fill=False, edgecolor="#D55E00", linewidth=2.5, linestyle=("-", ":")[place % 2]
    )


def _frames_legend(figure: Any, marked: Sequence[tuple[str, Cell]]) -> None:
    frames = [_frame(place, (0, 0), 1, 1) for place in range(len(marked))]
    if frames:
        names = [name for name, _ in marked]
        figure.legend(frames, names, loc="outside lower center", ncols=len(frames), frameon=False)


def _name(dimension: Dimension) -> str:
    relative = {"of_model": " (x the model's own)", "of_eps": " (x eps)"}.get(dimension.wrapper, "")
    return f"{dimension.path.rpartition('.')[2].replace('_', ' ')}{relative}"


# A report as Markdown, beside its pictures.


def markdown_of(content: Content, table: Sequence[dict[str, object]], pictures: Sequence[tuple[str, str]]) -> str:
    """`table`: rows of `results.trial_table`; `pictures`: (file name, what it shows)."""
    lines = [
        f"# Study {content.study}",
        "",
        f"{len(content.trials)} of {content.budget} trials of {content.summary}",
        "",
    ]
    if not content.unmodified:
        return "\n".join([*lines, "The study has not begun yet.", ""])
    lines += ["| model | clean | robust |", "| --- | ---: | ---: |"]
    if content.best is not None:
        best = content.trial(content.best)
        lines.append(
            f"| trial {best.number} (best) | {percent(best.clean_accuracy)} | {percent(best.robust_accuracy)} |"
        )
    clean, robust = (percent(content.unmodified[f"{name}_accuracy"]) for name in ("clean", "robust"))
    lines += [f"| unmodified CLIP | {clean} | {robust} |", "", "Interactive: [report.html](report.html)", ""]
    for name, text in pictures:
        lines += [f"![{text}]({name})", ""]
    lines += ["## Trials", ""]
    lines.append(
        "| trial | state | epochs | clean | robust | " + " | ".join(a.path for a in content.axes) + " | note |"
    )
    lines.append("| ---: | --- | ---: | ---: | ---: | " + "---: | " * len(content.axes) + "--- |")
    for row in table:
        trial = content.trial(int(str(row["number"])))
        values = " | ".join(_plain(axis.text(trial.params.get(axis.path))) for axis in content.axes)
        lines.append(
            f"| {trial.number} | {trial.state} | {trial.epochs}/{trial.planned_epochs} | "
            f"{percent(trial.clean_accuracy)} | {percent(trial.robust_accuracy)} | {values} | {_plain(trial.note)} |"
        )
    return "\n".join([*lines, ""])


def _plain(text: str) -> str:
    """Text that neither ends a table's cell nor is read as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


# Figures of a report about the search space: parallel coordinates, slices, importances.


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


# The time line of the cluster: one bar an attempt, and how many ran at once.


def at_once(bars: Sequence[Bar]) -> list[tuple[int, int]]:
    """(ms, attempts under way from then on), by time."""
    changes = sorted([(bar.started_ms, 1) for bar in bars] + [(bar.ended_ms, -1) for bar in bars])
    found: dict[int, int] = {}
    running = 0
    for when, change in changes:
        running += change
        found[when] = running
    return list(found.items())


def timeline(content: Content) -> Figure:
    """A bar an attempt, on its trial's line; white ticks are reports. Below: attempts at once."""
    unit, name, origin = clock_of(content)
    count = max((trial.number for trial in content.trials), default=0) + 1
    figure, grid = new_figure(
        10.5, min(14.0, 2.8 + 0.2 * count), 2, 1, sharex=True, gridspec_kw={"height_ratios": [max(3.0, 0.2 * count), 1]}
    )
    (axes,), (load,) = grid
    seen: set[str] = set()
    span = max((bar.ended_ms - origin for bar in content.timeline), default=0) / unit
    shortest = 0.003 * span  # to be seen at all
    hosts = {bar.host for bar in content.timeline if bar.host}
    for bar in content.timeline:
        colour, label = OUTCOMES.get(bar.outcome, ("#666666", bar.outcome))
        start, length = (bar.started_ms - origin) / unit, (bar.ended_ms - bar.started_ms) / unit
        axes.barh(
            bar.trial, max(length, shortest), left=start, height=0.74, color=colour,
            label=None if label in seen else label,
        )  # fmt: skip
        seen.add(label)
        if len(hosts) > 1 and length > 0.06 * span:  # where the name fits
            axes.annotate(bar.host, (start, bar.trial), textcoords="offset points", xytext=(3, 0), va="center",
                          fontsize=6, color="white", clip_on=True,
                          bbox={"facecolor": colour, "edgecolor": "none", "pad": 0.6})  # fmt: skip
    for trial in content.trials:
        times = [(epoch.timestamp_ms - origin) / unit for epoch in trial.curve]
        axes.vlines(times, trial.number - 0.37, trial.number + 0.37, color="white", linewidth=0.9)
    axes.set(ylabel="trial", ylim=(count - 0.4, -0.6))
    whole_numbers(axes.yaxis)
    axes.grid(visible=False, axis="y")
    if seen:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    steps = at_once(content.timeline)
    if steps:
        load.fill_between([(when - origin) / unit for when, _ in steps], [n for _, n in steps], step="post", alpha=0.35,
                          color="#0072B2", linewidth=0)  # fmt: skip
    load.set(
        xlabel=f"{name} since the study was created",
        ylabel="at once",
        ylim=(0, max((n for _, n in steps), default=0) + 0.6),
    )
    whole_numbers(load.yaxis)
    figure.suptitle(f"{content.study}: time line of the cluster")
    return figure
