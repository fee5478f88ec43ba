"""A sampler: keyed draws, whatever the results."""

from __future__ import annotations

from study.search.samplers import Keyed
from study.spec.config import Sampler

TOY_SAMPLER = Sampler(
    lambda spec, seed, dimensions: Keyed(spec.seed + 1),
    lambda settings: "toy-sampler: draws of its own",
    remarks=lambda spec: ["goal.subject_to: toy-sampler sees no floors"] if spec.goal.subject_to else [],
)
