"""The methods: one file each, one row here. Configuration, help and contract tests derive from METHODS."""

from __future__ import annotations

from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from trainers.objectives.agft import AGFT
from trainers.objectives.base import Batch, Context, Losses, Objective
from trainers.objectives.fare import FARE
from trainers.objectives.pmg_aft import PMGAFT
from trainers.objectives.tecoa import TeCoA
from trainers.objectives.tga_zsr import TGAZSR

__all__ = ["METHODS", "Batch", "Context", "Losses", "Objective"]

METHODS: dict[str, type[Objective]] = {"agft": AGFT, "tecoa": TeCoA, "pmg-aft": PMGAFT, "tga-zsr": TGAZSR, "fare": FARE}


def _one_of(classes: list[type[Objective]]) -> Any:
    """The union of the table's rows, told apart by `name`."""
    union: Any = reduce(or_, classes)
    return Annotated[union, Field(discriminator="name")] if len(classes) > 1 else union


if TYPE_CHECKING:
    MethodConfig = Objective
else:
    MethodConfig = _one_of(list(METHODS.values()))
