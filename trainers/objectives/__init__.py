"""The methods: one file each, one row here. Configuration, help and contract tests derive from METHODS."""

from __future__ import annotations

from typing import Annotated

from trainers.objectives.agft import AGFT
from trainers.objectives.base import Batch, Context, Losses, Objective
from trainers.objectives.fare import FARE
from trainers.objectives.pmg_aft import PMGAFT
from trainers.objectives.tecoa import TeCoA
from trainers.objectives.tga_zsr import TGAZSR
from trainers.objectives.ucat import UCAT
from trainers.schema.named import OneOf, record_rule
from trainers.table import Table

__all__ = ["METHODS", "Batch", "Context", "Losses", "MethodConfig", "Objective"]

METHODS: Table[type[Objective]] = Table(
    "method",
    "agft.methods",
    {"agft": AGFT, "tecoa": TeCoA, "pmg-aft": PMGAFT, "tga-zsr": TGAZSR, "fare": FARE, "ucat": UCAT},
    record_rule(Objective),
)
MethodConfig = Annotated[Objective, OneOf(METHODS)]
