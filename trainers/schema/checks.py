"""The names of the sanity checks, for whoever must know them without torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trainers.table import Table

CHECKS: Table[Callable[[Any], Any]] = Table(
    "sanity check",
    "agft.checks",
    {
        "deterministic": "trainers.evaluation.sanity.checks:deterministic",
        "above-chance": "trainers.evaluation.sanity.checks:above_chance",
        "agrees-with-original": "trainers.evaluation.sanity.checks:agrees_with_original",
        "input-range": "trainers.evaluation.sanity.checks:input_range",
        "zero-gradients": "trainers.evaluation.sanity.checks:zero_gradients",
        "loss-grows-with-steps": "trainers.evaluation.sanity.checks:loss_grows_with_steps",
        "random-noise-weaker": "trainers.evaluation.sanity.checks:random_noise_weaker",
        "pgd-apgd-gap": "trainers.evaluation.sanity.checks:pgd_apgd_gap",
        "black-box-not-better": "trainers.evaluation.sanity.checks:black_box_not_better",
        "huge-budget": "trainers.evaluation.sanity.checks:huge_budget",
        "unmodified-near-zero": "trainers.evaluation.sanity.checks:unmodified_near_zero",
    },
)
"""By name, which is also the heading of its section in docs/sanity.md: what is raised, why, and what to do.

A check is a function of a `trainers.evaluation.sanity.Subject` that answers with a `Judged`, or raises `NotApplicable`.
"""
