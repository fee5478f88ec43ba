"""From a finished dataset and attack to its record, and to a table with a row for every image and radius."""

from __future__ import annotations

import gzip
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from study.evaluation_plan import Evaluation
from trainers.attack_parameters import AutoAttack, EvalAttackParameters
from trainers.attack_settings import Composed
from trainers.readings import READINGS
from trainers.result import DatasetFacts, EvaluationRecord, Finding
from trainers.suite import AttackAt
from trainers.summary import at_radii, clean_result
from trainers.units import eps_label
from trainers.verdicts import Verdicts

__all__ = ["COLUMNS", "attack_parts", "image_rows", "make_record"]

COLUMNS = (
    "index", "label", "eps", *(f"{kind}_{name}" for kind in ("clean", "adversarial") for name in READINGS)
)  # fmt: skip


def make_record(
    evaluation: Evaluation,
    entry: AttackAt,
    dataset: DatasetFacts,
    verdicts: Verdicts,
    *,
    findings: Sequence[Finding],
    made: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> EvaluationRecord:
    """The record of a dataset under an attack. `made`: how each unit was; `provenance`: of the driver."""
    clean, evidence = clean_result(verdicts)
    return EvaluationRecord(
        model=evaluation.model,
        dataset=dataset,
        attack=entry,
        attack_label=entry.label,
        attack_parts=attack_parts(entry.attack, entry.norm, dataset.num_classes),
        protocol=evaluation.suite.protocol,
        seed=evaluation.suite.seed,
        micro_batch=made[0]["micro_batch"],
        device=", ".join(sorted({each["device"] for each in made})),
        original=evaluation.original,
        surrogate=evaluation.surrogate if entry.attack.name == "transfer" else None,
        clean=clean,
        clean_evidence=evidence,
        radii=at_radii(verdicts),
        sanity=tuple(findings),
        run={
            "suite": evaluation.suite.name,
            "evaluation": evaluation.digest,
            "units": len(made),
            "compute_seconds": round(sum(each["seconds"] for each in made), 3),
            "images_forwarded": sum(each["images_forwarded"] for each in made),
            "workers": sorted({each["worker"] for each in made}),
            "started_ms": min(each["started_ms"] for each in made),
            "ended_ms": max(each["started_ms"] + int(1000 * each["seconds"]) for each in made),
            "provenance": dict(provenance),
        },
    )


def attack_parts(attack: EvalAttackParameters, norm: str, num_classes: int) -> tuple[str, ...]:
    """What runs, where an attack is made of others."""
    if isinstance(attack, AutoAttack):
        return attack.parts(num_classes)
    if isinstance(attack, Composed):
        return tuple(part.label for part in attack.components(norm=norm, num_classes=num_classes))
    return ()


def image_rows(verdicts: Verdicts) -> bytes:
    """A gzipped CSV with COLUMNS: every image at every radius, in dataset order; equal for equal verdicts.

    Numbers have as many digits as their fp32 value needs; an overlap without an original model is empty.
    """
    text = io.StringIO(newline="")
    text.write(",".join(COLUMNS) + "\n")
    index, label = (values.numpy().astype(str) for values in (verdicts.index, verdicts.label))
    clean = [_words(getattr(verdicts.clean, name).numpy()) for name in READINGS]
    for row, eps in enumerate(verdicts.eps):
        attacked = [_words(getattr(verdicts.attacked, name)[row].numpy()) for name in READINGS]
        columns = [index, label, np.full(len(index), eps_label(eps)), *clean, *attacked]
        for values in zip(*columns, strict=True):
            text.write(",".join(values) + "\n")
    return gzip.compress(text.getvalue().encode(), mtime=0)


def _words(values: Any) -> Any:
    words = values.astype(str)
    return np.where(np.isnan(values), "", words) if values.dtype.kind == "f" else words
