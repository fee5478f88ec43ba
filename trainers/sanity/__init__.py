"""Sanity checks of an evaluation: can its robust accuracy be believed? Each is explained in docs/sanity.md."""

from __future__ import annotations

from trainers.result import Finding
from trainers.sanity.checks import CHECKS
from trainers.sanity.run import sanity_checks
from trainers.sanity.settings import passes
from trainers.sanity.subject import NotApplicable, Subject

__all__ = ["CHECKS", "Finding", "NotApplicable", "Subject", "passes", "sanity_checks"]
