"""A trial as people and programs are shown it: one typed, frozen record, made from the stored row.

`clean_accuracy` and `robust_accuracy` are those of the trial's best epoch on the dev sets, by the study's rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from study.spec.config import StudyConfig
from study.spec.dimension import METHOD, Dimension, active
from study.spec.space import known_paths
from study.spec.starts import warm_starts
from study.store.rows import Attempt, StudyRow, TrialRow

METRICS = ("clean_accuracy", "robust_accuracy")
Z95 = 1.959964
Reference = Literal["", "paper", "warm start"]
State = Literal["running", "complete", "pruned", "failed", "dropped"]


@dataclass(frozen=True)
class Epoch:
    """What one epoch measured on the dev sets; accuracies are fractions."""

    epoch: int
    clean_accuracy: float
    robust_accuracy: float
    train_loss: float
    timestamp_ms: int
    clean_calibration: float | None = None
    robust_calibration: float | None = None


@dataclass(frozen=True)
class Trial:
    """One trial of a study. Only `complete` trials (full length) are compared with each other.

    `clean_error` and `robust_error` are half-widths of 95 % intervals that come from the number of dev images alone;
    how much another training seed would change is not in them. `reference` says why a trial is marked in figures:
    `paper` (every searched field at its default, which is the paper's), `warm start`, or nothing.
    """

    number: int
    state: State
    params: dict[str, Any]
    epochs: int
    planned_epochs: int
    best_epoch: int | None
    clean_accuracy: float | None
    robust_accuracy: float | None
    clean_error: float | None
    robust_error: float | None
    feasible: bool | None
    started_ms: int
    ended_ms: int | None
    device_seconds: float
    stop_reason: str | None
    failure_kind: str | None
    reference: Reference
    rerun_of: int | None
    checkpoint: str | None
    checkpoint_sha256: str | None
    curve: tuple[Epoch, ...]
    attempts: tuple[Attempt, ...]
    config: dict[str, Any]
    clean_calibration: float | None = None
    robust_calibration: float | None = None

    @property
    def note(self) -> str:
        """Why it ended as it did, in one line; empty for a trial that simply reached its end."""
        lines = (self.stop_reason or "").strip().splitlines()
        return ": ".join(part for part in (self.failure_kind, lines[-1] if lines else "") if part)

    def flat(self) -> dict[str, Any]:
        """One row of a data frame: plain values; parameters by their dotted path."""
        row = asdict(self)
        for name in ("params", "config", "curve", "attempts"):
            row.pop(name)
        return {**row, "attempts": len(self.attempts), **self.params}


def trials_of(study: StudyRow, rows: Sequence[TrialRow]) -> list[Trial]:
    """Every stored trial, by number."""
    references = _references(study.spec)
    return [_trial(study.spec, row, references) for row in rows]


def _trial(spec: StudyConfig, row: TrialRow, references: Sequence[tuple[Reference, Mapping[str, Any]]]) -> Trial:
    last, best = row.last, row.best
    errors = _errors(row)
    return Trial(
        number=row.number,
        state=row.state,  # type: ignore[arg-type]
        params=row.params,
        epochs=last.epoch if last else 0,
        planned_epochs=int(row.config.get("train", {}).get("epochs", spec.train.epochs)),
        best_epoch=last.best_epoch if last else None,
        clean_accuracy=last.best_clean_accuracy if last else None,
        robust_accuracy=last.best_robust_accuracy if last else None,
        clean_error=errors.get("clean_accuracy"),
        robust_error=errors.get("robust_accuracy"),
        feasible=last.best_feasible if last else None,
        started_ms=row.started_ms,
        ended_ms=row.ended_ms,
        device_seconds=row.device_seconds,
        stop_reason=row.stop_reason,
        failure_kind=row.failure_kind,
        reference=next((name for name, values in references if _same(row.params, values)), ""),
        rerun_of=row.rerun_of,
        checkpoint=best.uri if best else None,
        checkpoint_sha256=best.sha256 if best else None,
        curve=tuple(Epoch(*(getattr(record, name) for name in Epoch.__dataclass_fields__)) for record in row.epochs),
        attempts=row.attempts,
        config=row.config,
        clean_calibration=last.best_clean_calibration if last else None,
        robust_calibration=last.best_robust_calibration if last else None,
    )


def _errors(row: TrialRow) -> dict[str, float]:
    """Half-widths at the best epoch. An image's mean over radii lies in [0, 1], so p (1 - p) bounds its variance."""
    best = row.last and row.last.best_epoch
    record = next((each for each in row.epochs if each.epoch == best), None)
    sets = [list(scores.values()) for scores in record.datasets.values()] if record else []
    if not sets:
        return {}
    found = {}
    for metric in METRICS:
        means = [sum(getattr(score, metric) for score in scores) / len(scores) for scores in sets]
        variances = [p * (1 - p) / scores[0].total for p, scores in zip(means, sets, strict=True)]
        found[metric] = Z95 * math.sqrt(sum(variances)) / len(sets)
    return found


def _references(spec: StudyConfig) -> list[tuple[Reference, dict[str, Any]]]:
    """Parameters with a name, the paper's first: the fields' own defaults, and what the study file starts with."""
    dimensions = spec.dimensions()
    named: list[tuple[Reference, dict[str, Any]]] = []
    for name in spec.blocks():
        known = known_paths(name)
        own = [d for d in dimensions if d.path in known]
        paper = {d.path: plain(d, known[d.path][0].get_default(call_default_factory=True)) for d in own}
        named.append(("paper", active(dimensions, {METHOD: name, **paper})))
    named += [("warm start", start.values) for start in warm_starts(spec, dimensions)]
    return named if dimensions else []


def plain(dimension: Dimension, default: Any) -> Any:
    """A field's default as the search writes it; None where it is given in another way."""
    wrapped = getattr(default, dimension.wrapper, None) if dimension.wrapper else default
    return wrapped if isinstance(wrapped, int | float | str | bool) else None


def _same(params: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether every sampled parameter has the wanted value; a conditional one that was not sampled does not count."""

    def equal(one: Any, other: Any) -> bool:
        if isinstance(one, float) and isinstance(other, int | float):
            return math.isclose(one, other, rel_tol=1e-9)
        return bool(one == other)

    return bool(params) and all(equal(value, wanted.get(path)) for path, value in params.items())
