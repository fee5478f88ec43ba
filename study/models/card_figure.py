"""The figure of a model card: every final set beside the unmodified CLIP, and the calibration where it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study.figures.content import Figure, Mark, Panel, Scale, Series
from study.figures.static import png
from study.models.catalog import own_result, unmodified_result
from trainers.evaluation.record import wilson

FIGURE = "results.png"
ROW_INCHES, LONGEST_NAME = 0.5, 28
Rows = list[tuple[str, Any, Any]]


def draw_card(manifest: Mapping[str, Any]) -> bytes | None:
    """A PNG; None for a version that was not measured on final sets."""
    figure = card_figure(manifest)
    return None if figure is None else png(figure, dpi=130)


def card_figure(manifest: Mapping[str, Any]) -> Figure | None:
    """What the picture says."""
    own = own_result(manifest, "final")
    if own is None:
        return None
    calibration = (manifest.get("calibration") or {}).get("model") or {}
    rows = _rows(own, unmodified_result(manifest, "final"))
    panels = [
        _accuracies(rows, "correct", "clean", named=True),
        _accuracies(rows, "robust", "under attack", named=False),
    ]
    panels += [_reliability(calibration)] if calibration else []
    title = f"{manifest['model']} version {manifest['version']}: final sets, 95 % intervals"
    height = max(4.0, 1.9 + ROW_INCHES * len(rows))
    return Figure("results", title, tuple(panels), 4.0 * len(panels) + 0.8, height, columns=len(panels))


def _rows(own: Mapping[str, Any], clip: Mapping[str, Any] | None) -> Rows:
    """(name, this model's score, the unmodified CLIP's) for every set and radius, first at the top."""
    rows = []
    for name, by_eps in own["datasets"].items():
        shown = name if len(name) <= LONGEST_NAME else f"...{name[-LONGEST_NAME:]}"
        for eps, score in by_eps.items():
            other = ((clip or {}).get("datasets", {}).get(name) or {}).get(eps)
            rows.append((f"{shown}\neps {eps}", score, other))
    return rows


def _accuracies(rows: Rows, metric: str, title: str, *, named: bool) -> Panel:
    marks: list[Mark] = []
    for which, role, label, shift in (
        (1, "series 0", "this model", -0.12), (2, "unmodified model", "unmodified CLIP", 0.12),
    ):  # fmt: skip
        found: list[tuple[float, Any]] = [(n + shift, row[which]) for n, row in enumerate(rows) if row[which]]
        values = [100 * score[metric] / score["total"] for _, score in found]
        ends = [wilson(score[metric], score["total"]) for _, score in found]
        errors = tuple((v - 100 * low, 100 * high - v) for v, (low, high) in zip(values, ends, strict=True))
        marks.append(Series(role, tuple(values), tuple(place for place, _ in found), label, size=6.0, x_errors=errors))
    names = tuple((float(place), row[0] if named else "") for place, row in enumerate(rows))
    return Panel(
        tuple(marks), Scale("accuracy (%)", -1, 102), Scale(low=len(rows) - 0.5, high=-0.5, ticks=names), title
    )


def _reliability(calibration: Mapping[str, Any]) -> Panel:
    """Accuracy against confidence, over all final sets together; a dot's area is its share of the images."""
    marks: list[Mark] = [Series("rule", (0, 100), (0, 100), width=0.8, dash="dot")]
    fitted = f"at T = {calibration['temperature']:.2f}"
    for role, label, bins, error in (
        ("series 0", "as shipped", "bins", "calibration_error"),
        ("series 1", fitted, "bins_at_temperature", "calibration_error_at_temperature"),
    ):
        joined = _joined([each[bins] for each in calibration["datasets"].values()])
        total = sum(n for n, _, _ in joined)
        x, y = (tuple(100 * each[column] for each in joined) for column in (1, 2))
        sizes = tuple((14 + 260 * n / total) ** 0.5 for n, _, _ in joined)
        marks.append(Series(role, x, y, width=1.2, opacity=0.8))
        label = f"calibration {label}: ECE {100 * calibration[error]:.1f} %"
        marks.append(Series(role, x, y, label, size=sizes, opacity=0.75))
    return Panel(
        tuple(marks), Scale("confidence (%)", 0, 100), Scale("accuracy (%)", 0, 100), "calibration, clean images"
    )


def _joined(sets: list[list[list[float]]]) -> list[tuple[float, float, float]]:
    """Bins of several sets together, empty ones left out."""
    joined = []
    for same in zip(*sets, strict=True):
        n = sum(each[0] for each in same)
        if n:
            joined.append((n, sum(e[0] * e[1] for e in same) / n, sum(e[0] * e[2] for e in same) / n))
    return joined
