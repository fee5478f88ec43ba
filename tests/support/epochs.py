"""Epoch records made of numbers, and how tests commit them, as a driver does."""

from __future__ import annotations

from typing import Any

from study.store.rows import TrialRow
from study.store.store import StudyStore
from trainers.schema.records import EpochRecord, Report, Weights


def epoch_record(epoch: int = 1, robust: float = 0.3, clean: float = 0.6, **changes: Any) -> EpochRecord:
    """An epoch that is the best so far and reaches every floor, unless `changes` say otherwise."""
    fields: dict[str, Any] = {
        "epoch": epoch, "timestamp_ms": epoch, "steps": 8 * epoch, "train_loss": 1.0, "parts": {}, "lr": 1e-3,
        "grad_norm": 1.0, "clean_accuracy": clean, "robust_accuracy": robust, "datasets": {}, "feasible": True,
        "best_epoch": epoch, "best_clean_accuracy": clean, "best_robust_accuracy": robust, "best_feasible": True,
        "train_seconds": 1.0, "eval_seconds": 0.1, "images_per_second": 64.0,
    }  # fmt: skip
    return EpochRecord.model_validate({**fields, **changes})


def weights(uri: str, sha256: str = "0" * 64, size: int | None = None) -> Weights:
    """A file that nobody reads."""
    return Weights(uri=uri, sha256=sha256, bytes=size)


def commit(
    store: StudyStore, token: int, number: int, *records: EpochRecord, latest: Weights | None = None,
    best: Weights | None = None, device_seconds: float = 1.0, **provenance: Any,
) -> TrialRow:  # fmt: skip
    """Store a report with these records; the row, which is the stored one."""
    newest = records[-1].epoch if records else 1
    report = Report(epoch=newest, records=records, latest=latest, best=best, provenance=provenance)
    row = store.record(token, store.trial(number), report, device_seconds=device_seconds)
    assert row == store.trial(number)
    return row
