"""An evaluation as a study file says it, in short; everything below the study file sees the `Suite` made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field, model_validator

from study.spec.suite import capped
from trainers.schema.attacks import PGD
from trainers.schema.suite import AttackAt, Protocol, Suite, problems
from trainers.schema.units import Frozen, Length, OfEps, Radius, Several


class StudyAttack(Frozen):
    """The attack under which every trial is measured, whatever it trains with."""

    name: Literal["pgd"] = Field(default="pgd", description="attack name")
    eps: Several[Radius] = Field(default=(1 / 255,), min_length=1, description="L-inf radii, pixels in [0, 1]")
    step_size: Length | OfEps = Field(default=OfEps(of_eps=0.25), description="PGD step, absolute or a multiple of eps")
    steps: int = Field(default=10, ge=1, le=10000, description="number of PGD steps")


class Selection(Frozen):
    """One evaluation: protocol, attack, and how many images of each set."""

    protocol: Protocol = Field(
        default="strict",
        description="strict: fooled if any iterate fools; paper: every image attacked, final iterate; fast: strict, "
        "searched in half precision, confirmed in fp32, checked on one image in ten (evaluate.select alone)",
    )
    attack: StudyAttack = Field(default=StudyAttack(), description="the attack")
    samples: int | None = Field(default=None, ge=1, description="images per set, class-stratified; null = all")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of sample and attack starts, one for all trials")

    def suite(self, name: str, datasets: Sequence[str]) -> Suite:
        """The evaluation on these sets."""
        attacks, sets = self._attacks(), tuple(dict.fromkeys(datasets))
        suite = Suite(name=name, datasets=sets, attacks=attacks, protocol=self.protocol, seed=self.seed)
        return capped(suite, self.samples)

    def _attacks(self) -> tuple[AttackAt, ...]:
        attack = PGD(steps=self.attack.steps, step_size=self.attack.step_size)
        return (AttackAt(attack=attack, eps=tuple(dict.fromkeys(self.attack.eps))),)


class FinalEvaluation(Selection):
    """A `Selection`, or `attacks` as in a suite instead of its one `attack`.

    With several, an image is robust at a radius if none of the attacks at that radius fools it; only images that all
    of them were run on count.
    """

    attacks: Several[AttackAt] = Field(
        default=(), description="instead of `attack`, several of `docs/attacks.md`, each with eps, norm and samples"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_say_it(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("attacks") and "attack" in given:
            attack = given["attack"]
            default = StudyAttack().model_dump(mode="json")
            plain = attack if isinstance(attack, Mapping) else getattr(attack, "model_dump", dict)(mode="json")
            if dict(plain) != default:  # the default is what a stored study spells out
                raise ValueError("write attack, or attacks, but not both")
        return given

    @model_validator(mode="after")
    def _no_estimates(self) -> FinalEvaluation:
        if self.protocol == "fast":
            raise ValueError("protocol: fast is for evaluate.select: whom it misses is an estimate; write strict")
        return self

    @model_validator(mode="after")
    def _attacks_that_can_run(self) -> FinalEvaluation:
        labels = [entry.label for entry in self.attacks]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"attacks: {', '.join(twice)} twice; give it all its radii at once")
        if any(entry.attack.name == "transfer" for entry in self.attacks):
            raise ValueError("attacks: transfer needs another model to make its images on; use `agft evaluate`")
        return self

    def _attacks(self) -> tuple[AttackAt, ...]:
        return self.attacks or super()._attacks()


def suite_problems(config: FinalEvaluation, datasets: Sequence[str]) -> list[str]:
    """What keeps the attacks from being run on these sets (too few classes for a loss), one line each."""
    return [text for text in problems(config.suite("final", datasets)) if text.startswith("attacks.")]
