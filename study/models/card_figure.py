"""The figure of a model card: every final set beside the unmodified CLIP, and the calibration where it was measured."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

from study.figure_style import new_figure, percent_axis, plain_axes
from study.models.catalog import own_result, unmodified_result
from trainers.evaluation.record import wilson

FIGURE = "results.png"
OWN, CLIP, AT_TEMPERATURE = "#0072B2", "#8a8a8a", "#E69F00"
ROW_INCHES, LONGEST_NAME = 0.5, 28


def draw_card(manifest: Mapping[str, Any]) -> bytes | None:
    """A PNG; None for a version that was not measured on final sets."""
    own = own_result(manifest, "final")
    if own is None:
        return None
    calibration = (manifest.get("calibration") or {}).get("model") or {}
    rows = _rows(own, unmodified_result(manifest, "final"))
    height = max(4.0, 1.9 + ROW_INCHES * len(rows))
    columns = 3 if calibration else 2
    figure, ((clean, robust, *rest),) = new_figure(
        4.0 * columns + 0.8, height, columns=columns, width_ratios=[1.0] * columns
    )
    for axes, metric, title in ((clean, "correct", "clean"), (robust, "robust", "under attack")):
        _accuracies(axes, rows, metric, title, named=axes is clean)
    if rest:
        _reliability(rest[0], calibration)
    handles, labels = clean.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False)
    figure.suptitle(f"{manifest['model']} version {manifest['version']}: final sets, 95 % intervals", x=0.01, ha="left")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=130)
    return content.getvalue()


def _rows(own: Mapping[str, Any], clip: Mapping[str, Any] | None) -> list[tuple[str, Any, Any]]:
    """(name, this model's score, the unmodified CLIP's) for every set and radius, first at the top."""
    rows = []
    for name, by_eps in own["datasets"].items():
        shown = name if len(name) <= LONGEST_NAME else f"...{name[-LONGEST_NAME:]}"
        for eps, score in by_eps.items():
            other = ((clip or {}).get("datasets", {}).get(name) or {}).get(eps)
            rows.append((f"{shown}\neps {eps}", score, other))
    return rows


def _accuracies(axes: Any, rows: list[tuple[str, Any, Any]], metric: str, title: str, *, named: bool) -> None:
    places = range(len(rows))
    own: list[Any] = [row[1] for row in rows]
    clip: list[Any] = [row[2] for row in rows]
    for label, colour, scores, shift, marker in (
        ("this model", OWN, own, -0.12, "o"), ("unmodified CLIP", CLIP, clip, 0.12, "D"),
    ):  # fmt: skip
        found = [(place + shift, score) for place, score in zip(places, scores, strict=True) if score]
        values = [score[metric] / score["total"] for _, score in found]
        ends = [wilson(score[metric], score["total"]) for _, score in found]
        spread = [[v - low for v, (low, _) in zip(values, ends, strict=True)],
                  [high - v for v, (_, high) in zip(values, ends, strict=True)]]  # fmt: skip
        axes.errorbar(
            values, [place for place, _ in found], xerr=spread, fmt=marker, color=colour, markersize=6, capsize=3,
            linewidth=1.6, label=label,
        )  # fmt: skip
    axes.set(xlim=(-0.01, 1.02), ylim=(len(rows) - 0.5, -0.5), title=title, xlabel="accuracy (%)", yticks=list(places))
    axes.set_yticklabels([name for name, *_ in rows] if named else [""] * len(rows))
    axes.tick_params(axis="y", length=0)
    percent_axis(axes, "x")


def _reliability(axes: Any, calibration: Mapping[str, Any]) -> None:
    """Accuracy against confidence, over all final sets together; a dot's area is its share of the images."""
    plain_axes(axes)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    mean = {"bins": calibration["calibration_error"],
            "bins_at_temperature": calibration["calibration_error_at_temperature"]}  # fmt: skip
    names = {"bins": "as shipped", "bins_at_temperature": f"at T = {calibration['temperature']:.2f}"}
    for key, colour, marker in (("bins", OWN, "o"), ("bins_at_temperature", AT_TEMPERATURE, "s")):
        joined = _joined([each[key] for each in calibration["datasets"].values()])
        total = sum(n for n, _, _ in joined)
        axes.plot([c for _, c, _ in joined], [a for _, _, a in joined], color=colour, linewidth=1.2, alpha=0.8)
        axes.scatter(
            [c for _, c, _ in joined], [a for _, _, a in joined], s=[14 + 260 * n / total for n, _, _ in joined],
            color=colour, marker=marker, alpha=0.75, linewidths=0, label=f"{names[key]}: ECE {100 * mean[key]:.1f} %",
        )  # fmt: skip
    axes.set(
        xlim=(0, 1), ylim=(0, 1), xlabel="confidence (%)", ylabel="accuracy (%)", title="calibration, clean images"
    )
    percent_axis(axes, "x")
    percent_axis(axes, "y")
    legend = axes.legend(loc="upper left", frameon=False, fontsize="small")
    for handle in legend.legend_handles:
        handle.set_sizes([40])


def _joined(sets: list[list[list[float]]]) -> list[tuple[float, float, float]]:
    """Bins of several sets together, empty ones left out."""
    joined = []
    for same in zip(*sets, strict=True):
        n = sum(each[0] for each in same)
        if n:
            joined.append((n, sum(e[0] * e[1] for e in same) / n, sum(e[0] * e[2] for e in same) / n))
    return joined
