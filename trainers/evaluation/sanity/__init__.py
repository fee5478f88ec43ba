"""Sanity checks of an evaluation: can its robust accuracy be believed? Each is explained in docs/sanity.md."""

from __future__ import annotations

from trainers.evaluation.record import Finding
from trainers.evaluation.sanity.checks import Judged
from trainers.evaluation.sanity.run import sanity_checks
from trainers.evaluation.sanity.settings import passes
from trainers.evaluation.sanity.subject import NotApplicable, Subject
from trainers.schema.checks import CHECKS

__all__ = ["CHECKS", "Finding", "Judged", "NotApplicable", "Subject", "passes", "sanity_checks"]
