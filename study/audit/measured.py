"""Accuracies from counts, and the best epoch from accuracies."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from study.audit.findings import ROUNDING, Finding
from study.spec.config import StudyConfig
from study.store.rows import TrialRow
from trainers.schema.records import GAP_UNIT, Accuracies, EpochRecord, Score, accuracy_of, standing
from trainers.schema.training import ACCURACIES, CALIBRATIONS, Goal
from trainers.schema.units import eps_label

METRICS = (*ACCURACIES, *CALIBRATIONS)
Datasets = Mapping[str, Mapping[str, Score]]


def near(one: float | None, other: float | None) -> bool:
    """Whether two means are the same but for rounding; what was not measured is nowhere."""
    return one == other if one is None or other is None else abs(one - other) <= ROUNDING


def counts(datasets: Datasets, path: str, **place: Any) -> Iterator[Finding]:
    """Ratios from integer counts; a set has the same images, and so many of them right, at every radius."""
    for name, scores in datasets.items():
        first = next(iter(scores.values()), None)
        for label, score in scores.items():
            where = f"{path}.{name}.{label}"
            for each in ("correct", "robust"):
                if getattr(score, each) > score.total:
                    yield Finding(f"{where}.{each}", getattr(score, each), score.total, "at most total", **place)
            for each in ("clean_gap", "robust_gap"):
                if (getattr(score, each) or 0) > score.total * GAP_UNIT:
                    yield Finding(f"{where}.{each}", getattr(score, each), score.total * GAP_UNIT, "at most 1 an image",
                                  **place)  # fmt: skip
            for each in ("correct", "total", "clean_gap"):
                own, other = getattr(score, each), getattr(first, each)
                if own != other:
                    yield Finding(f"{where}.{each}", own, other, "the same images at every radius", **place)
            for metric, count in (("clean_accuracy", score.correct), ("robust_accuracy", score.robust)):
                if not near(getattr(score, metric), count / score.total):
                    told = getattr(score, metric), count / score.total
                    yield Finding(f"{where}.{metric}", *told, "its count over total", **place)


def means(measured: Accuracies, datasets: Datasets, path: str, **place: Any) -> Iterator[Finding]:
    """Unweighted, over sets and radii."""
    if not datasets or not all(datasets.values()):
        yield Finding(f"{path}datasets", {}, None, "accuracies come from counts, and there are none", **place)
        return
    derived = accuracy_of(datasets)
    for metric in METRICS:
        own, other = getattr(measured, metric), getattr(derived, metric)
        if not near(own, other):
            yield Finding(f"{path}{metric}", own, other, "mean over the sets' counts", **place)


def on_dev(spec: StudyConfig, datasets: Datasets, path: str, **place: Any) -> Iterator[Finding]:
    """The sets and radii are those that the specification selects by."""
    sets = sorted(set(spec.data.dev))
    if sorted(datasets) != sets:
        yield Finding(path, sorted(datasets), sets, "data.dev", **place)
        return
    radii = sorted({eps_label(eps) for eps in spec.evaluate.select.attack.eps})
    for name, scores in datasets.items():
        if sorted(scores) != radii:
            yield Finding(f"{path}.{name}", sorted(scores), radii, "evaluate.select.attack.eps", **place)


def same_images(datasets: Datasets, others: Datasets, path: str, **place: Any) -> Iterator[Finding]:
    """As many of each set as of the unmodified model."""
    for name, scores in datasets.items():
        for label, score in scores.items():
            if label in others.get(name, {}) and score.total != others[name][label].total:
                told = score.total, others[name][label].total
                yield Finding(f"{path}.{name}.{label}.total", *told, "as of the unmodified model", **place)


def epochs(spec: StudyConfig, goal: Goal, row: TrialRow, unmodified: Datasets) -> Iterator[Finding]:
    """A trial's epoch records: without a gap, with accuracies from counts and the best epoch by the goal's rule."""
    last: EpochRecord | None = None
    for number, record in enumerate(row.epochs, start=1):
        place: dict[str, Any] = {"trial": row.number, "epoch": number}
        if record.epoch != number:
            yield Finding("epoch", record.epoch, number, "epochs follow each other without a gap", **place)
        yield from on_dev(spec, record.datasets, "datasets", **place)
        yield from counts(record.datasets, "datasets", **place)
        yield from same_images(record.datasets, unmodified, "datasets", **place)
        yield from means(record, record.datasets, "", **place)
        for name, value in standing(number, record, last, goal).items():
            if getattr(record, name) != value:
                yield Finding(name, getattr(record, name), value, "the best epoch so far, by the goal", **place)
        last = record
