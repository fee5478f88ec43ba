"""A sanity check: a constant answer is no answer."""

from __future__ import annotations

from trainers.evaluation.sanity import Judged, Subject


def toy_check(subject: Subject) -> Judged:
    kinds = len(set(subject.clean.argmax(1).tolist()))
    return Judged(kinds < 2, float(kinds), 2.0, f"{kinds} classes are ever predicted")
