"""The adaptive tier's settings: attacks for models that answer at random or hide their gradients. Imports no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from trainers.schema.attacks import STEP, Composed, EvalAttackParameters, Passes
from trainers.schema.units import Length, OfEps


class EOTPGD(EvalAttackParameters):
    norms = ("linf", "l2")
    summary = "PGD on the margin whose every gradient and verdict is the mean of several draws of the model"
    citation = "Athalye et al., ICML 2018, arXiv:1707.07397 (draws) and arXiv:1802.00420 (a stand-in's gradient)"
    function = "trainers.attacks.adaptive:eot_pgd_attack"
    name: Literal["eot-pgd"] = "eot-pgd"
    steps: int = Field(default=40, ge=0, le=10000, description="number of steps from one random start")
    step_size: Length | OfEps = Field(default=OfEps(of_eps=0.25), description=STEP)
    draws: int = Field(default=16, ge=1, le=10000, description="forward passes that a gradient or a verdict averages")
    follow: Literal["model", "surrogate"] = Field(
        default="model",
        description="whose gradient leads: the model's, or the surrogate's in its place; judged is the model",
    )

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        """At most, the surrogate's among them: where every iterate's verdict is asked for a second time."""
        led = self.steps * self.draws if self.follow == "surrogate" else 0
        return (self.steps + 1) * _verdict(self.draws) + led, self.steps * self.draws


class SPSA(EvalAttackParameters):
    gradients = False
    summary = "PGD on the margin whose gradient is estimated from pairs of random probes; asks the model for none"
    citation = "Uesato et al., ICML 2018, arXiv:1802.05666; its steps are signs here, not Adam's"
    function = "trainers.attacks.adaptive:spsa_attack"
    name: Literal["spsa"] = "spsa"
    steps: int = Field(default=20, ge=0, le=10000, description="number of steps from the image")
    step_size: Length | OfEps = Field(default=OfEps(of_eps=0.25), description=STEP)
    probes: int = Field(default=32, ge=1, le=100000, description="pairs of forward passes of each step")
    probe: Length | OfEps = Field(
        default=OfEps(of_eps=0.5), description="how far a probe is from the iterate, absolute or a multiple of eps"
    )
    draws: int = Field(default=1, ge=1, le=10000, description="forward passes that a verdict averages")

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        return 2 * self.steps * self.probes + (self.steps + 1) * _verdict(self.draws), 0


class Adaptive(Composed):
    summary = "eot-pgd, then spsa, on who is not fooled yet: what hides or shuffles its gradients is seen through"
    citation = "after Tramer et al., NeurIPS 2020, arXiv:2002.08347: several attacks, each made for one way of hiding"
    name: Literal["adaptive"] = "adaptive"
    steps: int = Field(default=40, ge=1, le=10000, description="steps of eot-pgd")
    draws: int = Field(default=16, ge=1, le=10000, description="draws of both parts")
    probes: int = Field(default=32, ge=1, le=100000, description="pairs of forward passes of each of spsa's 20 steps")

    def components(self, *, norm: str, num_classes: int) -> tuple[EvalAttackParameters, ...]:
        return EOTPGD(steps=self.steps, draws=self.draws), SPSA(probes=self.probes, draws=self.draws)


def _verdict(draws: int) -> int:
    """Forward passes of one verdict at most: a mean of several draws that says "fooled" is asked for again."""
    return draws if draws == 1 else 2 * draws
