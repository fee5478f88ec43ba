"""Figures of a comparison, from its record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from study.statistics import METRICS, set_accuracy

if TYPE_CHECKING:
    from matplotlib.axes import Axes


FIGURES = {
    "comparison-accuracy.png": "clean against robust accuracy",
    "comparison-sets.png": "accuracy on every final set",
    "comparison-search.png": "search curves",
}
# Colour-blind safe (Okabe and Ito), and another marker each.
STYLES = (
    ("#0072B2", "o"), ("#E69F00", "s"), ("#009E73", "^"), ("#D55E00", "D"), ("#CC79A7", "v"), ("#56B4E9", "P"),
    ("#999999", "X"),
)  # fmt: skip


def draw_figures(record: Mapping[str, Any], folder: Path) -> None:
    """Write every figure of FIGURES into `folder`."""
    import matplotlib

    matplotlib.use("Agg")
    for name, draw in zip(FIGURES, (_accuracy, _sets, _search), strict=True):
        figure = draw(record)
        figure.savefig(folder / name, dpi=150)
        _close(figure)


def _close(figure: Any) -> None:
    import matplotlib.pyplot as plt

    plt.close(figure)


def _axes(width: float, height: float, columns: int = 1) -> tuple[Any, list[Axes]]:
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(1, columns, figsize=(width, height), constrained_layout=True, squeeze=False)
    for axes in grid[0]:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    return figure, list(grid[0])


def _style(record: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {label: STYLES[place % len(STYLES)] for place, label in enumerate(record["methods"])}


def _finals(method: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [run["final"] for run in method["runs"] if run["final"]]


def _accuracy(record: Mapping[str, Any]) -> Any:
    """Clean against robust accuracy, means over the final sets: a dot a seed, the mean with its deviation."""
    figure, (axes,) = _axes(7.5, 5)
    clip = record["unmodified"]["final"]
    for label, (colour, marker) in _style(record).items():
        method = record["methods"][label]
        points = _finals(method)
        x, y = ([100 * point[name] for point in points] for name in METRICS)
        axes.scatter(x, y, color=colour, marker=marker, s=22, alpha=0.45, linewidths=0)
        clean, robust = (method["summary"]["final"][name] for name in METRICS)
        axes.errorbar(
            100 * clean["mean"], 100 * robust["mean"], xerr=100 * (clean["deviation"] or 0),
            yerr=100 * (robust["deviation"] or 0), color=colour, marker=marker, markersize=9, markeredgecolor="white",
            capsize=3, linewidth=1.4, label=label,
        )  # fmt: skip
    axes.scatter(
        [100 * clip["clean_accuracy"]], [100 * clip["robust_accuracy"]], color="black", marker="*", s=140,
        label="unmodified CLIP", zorder=3,
    )  # fmt: skip
    axes.set(
        xlabel="clean accuracy, mean over the final sets (%)", ylabel="robust accuracy, mean over the final sets (%)",
        title=f"{record['name']}: every seed, and mean ± standard deviation",
    )  # fmt: skip
    handles, labels = axes.get_legend_handles_labels()
    order = [*range(1, len(handles)), 0]  # matplotlib lists the star before the error bars
    axes.legend(
        [handles[i] for i in order], [labels[i] for i in order], frameon=False, loc="center left",
        bbox_to_anchor=(1.0, 0.5),
    )  # fmt: skip
    return figure


def _sets(record: Mapping[str, Any]) -> Any:
    """Both accuracies on every final set: a dot a seed, a bar at the mean, a dashed line for the unmodified CLIP."""
    style = _style(record)
    names = list(record["unmodified"]["final"]["datasets"])
    figure, both = _axes(max(8.0, 2.2 * len(names) + 3.5), 4.6, 2)
    step = 0.8 / len(style)
    for axes, metric in zip(both, METRICS, strict=True):
        for place, (label, (colour, marker)) in enumerate(style.items()):
            points = _finals(record["methods"][label])
            for column, name in enumerate(names):
                centre = column + (place - (len(style) - 1) / 2) * step
                values = [100 * set_accuracy(point["datasets"][name], metric) for point in points]
                axes.bar(centre, sum(values) / len(values), width=0.86 * step, color=colour, alpha=0.3)
                axes.scatter(
                    _spread_out(centre, len(values), 0.5 * step), values, color=colour, marker=marker, s=14,
                    label=label if column == 0 else None, linewidths=0, zorder=3,
                )  # fmt: skip
        for column, name in enumerate(names):
            clip = 100 * set_accuracy(record["unmodified"]["final"]["datasets"][name], metric)
            axes.hlines(
                clip, column - 0.45, column + 0.45, color="black", linestyle="--", linewidth=1.3, zorder=4,
                label="unmodified CLIP" if column == 0 else "_hidden",
            )  # fmt: skip
        axes.set(
            xticks=range(len(names)), xticklabels=names, ylabel=f"{metric.split('_')[0]} accuracy (%)", ylim=(0, None)
        )
        axes.grid(axis="x", visible=False)
    figure.legend(*both[0].get_legend_handles_labels(), frameon=False, loc="outside lower center", ncols=len(style) + 1)
    figure.suptitle(f"{record['name']}: final sets, every seed and the mean")
    return figure


def _spread_out(centre: float, number: int, width: float) -> list[float]:
    """Places of a column's dots, side by side."""
    return [centre + (place - (number - 1) / 2) * width / max(1, number - 1) for place in range(number)]


def _search(record: Mapping[str, Any]) -> Any:
    """Best feasible goal metric on the dev sets after so many trials; every trial as a dot, hollow below a floor."""
    figure, (axes,) = _axes(8, 4.6)
    metric = record["setting"]["goal"]["metric"]
    for label, (colour, marker) in _style(record).items():
        trials = record["methods"][label]["search"]["trials"]
        best_at: list[int] = []
        best: list[float] = []
        for place, trial in enumerate(trials, start=1):
            if trial["feasible"] and trial["state"] == "complete":
                best.append(max([100 * trial[metric], *best[-1:]]))
            elif best:
                best.append(best[-1])
            if best:
                best_at.append(place)
            if trial[metric] is not None:
                face = colour if trial["feasible"] else "none"
                axes.scatter(
                    place, 100 * trial[metric], facecolors=face, edgecolors=colour, marker=marker, s=20, alpha=0.5
                )
        axes.step(best_at, best, where="post", color=colour, linewidth=1.8, label=label)
    axes.scatter([], [], facecolors="none", edgecolors="black", s=20, label="below a floor")
    axes.set(
        xlabel="trials", ylabel=f"{metric.replace('_', ' ')} on the dev sets (%)",
        title=f"{record['name']}: best so far, and every trial",
        xticks=_ticks([len(method["search"]["trials"]) for method in record["methods"].values()]),
    )  # fmt: skip
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def _ticks(lengths: Sequence[int]) -> range:
    longest = max(lengths)
    return range(1, longest + 1, max(1, round(longest / 12)))
