"""Figures of a report about results: the trade-off, learning curves, and the search's progress."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from study.report_content import Content
from study.report_style import ACCENT, GREY, LABELS, STATES, new_figure, percent_axis, whole_numbers

__all__ = ["curves", "progress", "tradeoff"]

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
