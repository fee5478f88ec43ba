"""The figure of a model card: every final set beside the unmodified CLIP, and the calibration where it was measured."""

from __future__ import annotations

import io
from typing import Any

from study.figure_style import new_figure, percent_axis, plain_axes
from study.models.manifest import Bins, Calibration, Manifest
from study.results.ranking import Measurement
from trainers.evaluation.record import wilson

FIGURE = "results.png"
OWN, CLIP, AT_TEMPERATURE = "#0072B2", "#8a8a8a", "#E69F00"
ROW_INCHES, LONGEST_NAME = 0.5, 28


def draw_card(manifest: Manifest) -> bytes:
    """A PNG."""
    calibration = manifest.calibration.model if manifest.calibration else None
    rows = _rows(manifest.own("final"), manifest.unmodified("final"))
    height = max(4.0, 1.9 + ROW_INCHES * len(rows))
    columns = 3 if calibration else 2
    figure, ((clean, robust, *rest),) = new_figure(
        4.0 * columns + 0.8, height, columns=columns, width_ratios=[1.0] * columns
    )
    for axes, metric, title in ((clean, "correct", "clean"), (robust, "robust", "under attack")):
        _accuracies(axes, rows, metric, title, named=axes is clean)
    if calibration:
        _reliability(rest[0], calibration)
    handles, labels = clean.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False)
    figure.suptitle(f"{manifest.model} version {manifest.version}: final sets, 95 % intervals", x=0.01, ha="left")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()


def _rows(own: Measurement, clip: Measurement) -> list[tuple[str, Any, Any]]:
    """(name, this model's score, the unmodified CLIP's) for every set and radius, first at the top."""
    rows = []
    for name, by_eps in own["datasets"].items():
        shown = name if len(name) <= LONGEST_NAME else f"...{name[-LONGEST_NAME:]}"
        for eps, score in by_eps.items():
            rows.append((f"{shown}\neps {eps}", score, clip["datasets"][name][eps]))
    return rows


def _accuracies(axes: Any, rows: list[tuple[str, Any, Any]], metric: str, title: str, *, named: bool) -> None:
    places = range(len(rows))
    for label, colour, column, shift, marker in (
        ("this model", OWN, 1, -0.12, "o"), ("unmodified CLIP", CLIP, 2, 0.12, "D"),
    ):  # fmt: skip
        scores: list[Any] = [row[column] for row in rows]
        values = [score[metric] / score["total"] for score in scores]
        ends = [wilson(score[metric], score["total"]) for score in scores]
        spread = [[v - low for v, (low, _) in zip(values, ends, strict=True)],
                  [high - v for v, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
        axes.errorbar(
            values, [place + shift for place in places], xerr=spread, fmt=marker, color=colour, markersize=6, capsize=3,
            linewidth=1.6, label=label,
        )  # fmt: skip
    axes.set(xlim=(-0.01, 1.02), ylim=(len(rows) - 0.5, -0.5), title=title, xlabel="accuracy (%)", yticks=list(places))
    axes.set_yticklabels([name for name, *_ in rows] if named else [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    percent_axis(axes, "x")


def _reliability(axes: Any, calibration: Calibration) -> None:
    """Accuracy against confidence, over all final sets together; a dot's area is its share of the images."""
    plain_axes(axes)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    sets, fitted = calibration.datasets.values(), f"at T = {calibration.temperature:.2f}"
    for bins, name, error, colour, marker in (
        ([each.bins for each in sets], "as shipped", calibration.calibration_error, OWN, "o"),
        ([each.bins_at_temperature for each in sets], fitted, calibration.calibration_error_at_temperature,
         AT_TEMPERATURE, "s"),
    ):  # fmt: skip
        joined = _joined(bins)
        total = sum(n for n, _, _ in joined)
        axes.plot([c for _, c, _ in joined], [a for _, _, a in joined], color=colour, linewidth=1.2, alpha=0.8)
        axes.scatter(
            [c for _, c, _ in joined], [a for _, _, a in joined], s=[14 + 260 * n / total for n, _, _ in joined],
            color=colour, marker=marker, alpha=0.75, linewidths=0, label=f"{name}: ECE {100 * error:.1f} %",
        )  # fmt: skip
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="confidence (%)", ylabel="accuracy (%)", title="calibration, clean images"
    )
    percent_axis(axes, "x")
    percent_axis(axes, "y")
    legend = axes.legend(loc="upper left", frameon=False, fontsize="small")
    for handle in legend.legend_handles:
        handle.set_sizes([40])


def _joined(sets: list[Bins]) -> list[tuple[float, float, float]]:
    """Bins of several sets together, empty ones left out."""
    joined = []
    for same in zip(*sets, strict=True):
        n = sum(each[0] for each in same)
        if n:
            joined.append((n, sum(e[0] * e[1] for e in same) / n, sum(e[0] * e[2] for e in same) / n))
    return joined
