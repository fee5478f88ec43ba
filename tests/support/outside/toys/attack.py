"""An evaluation attack: both corners of the ball, all pixels up and all down."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from trainers.schema.attacks import EvalAttackParameters, Passes


class ToyAttack(EvalAttackParameters):
    gradients = False
    summary = "the image brighter and darker by the radius; asks for no gradient"
    citation = "an example"
    name: Literal["toy-attack"] = "toy-attack"
    levels: int = Field(default=1, ge=1, le=100, description="how many parts of the radius are looked at")

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        return 2 * self.levels, 0

    def run(self, case: Any) -> Any:
        import torch

        from trainers.attacks import Outcome

        worst = case.worst()
        with torch.no_grad():
            for level in range(1, self.levels + 1):
                for sign in (1, -1):
                    candidates = case.project(case.images + sign * case.eps * level / self.levels)
                    worst.look(case.ask(candidates, worst.done), candidates)
        return Outcome(worst.images, worst)
