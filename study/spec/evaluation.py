"""The evaluation of confirm and final sets: one attack, or several, which an image must all survive. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import Field, model_validator

from trainers.schema.attacks import PGD
from trainers.schema.suite import AttackAt, Suite, problems
from trainers.schema.training import EvalConfig


class FinalEvaluation(EvalConfig):
    """An `EvalConfig`, or `attacks` as in a suite instead of its one `attack`.

    With several, an image is robust at a radius if none of the attacks at that radius fools it; only images that all
    of them were run on count.
    """

    attacks: tuple[AttackAt, ...] = Field(
        default=(), description="instead of `attack`, several of `docs/attacks.md`, each with eps, norm and samples"
    )

    @model_validator(mode="before")
    @classmethod
    def _one_way_to_say_it(cls, given: Any) -> Any:
        if isinstance(given, Mapping) and given.get("attacks") and "attack" in given:
            attack = given["attack"]
            default = EvalConfig().attack.model_dump(mode="json")
            plain = attack if isinstance(attack, Mapping) else getattr(attack, "model_dump", dict)(mode="json")
            if dict(plain) != default:  # the default is what a stored study spells out
                raise ValueError("write attack, or attacks, but not both")
        return given

    @model_validator(mode="after")
    def _attacks_that_can_run(self) -> FinalEvaluation:
        labels = [entry.label for entry in self.attacks]
        if twice := sorted({label for label in labels if labels.count(label) > 1}):
            raise ValueError(f"attacks: {', '.join(twice)} twice; give it all its radii at once")
        if any(entry.attack.name == "transfer" for entry in self.attacks):
            raise ValueError("attacks: transfer needs another model to make its images on; use `agft evaluate`")
        return self


def entries(config: EvalConfig) -> tuple[AttackAt, ...]:
    """The attacks of an evaluation as a suite has them; `samples` bounds each one's."""
    several = config.attacks if isinstance(config, FinalEvaluation) else ()
    if not several:
        attack = PGD(steps=config.attack.steps, step_size=config.attack.step_size)
        return (AttackAt(attack=attack, eps=tuple(dict.fromkeys(config.attack.eps)), samples=config.samples),)
    return tuple(entry.model_copy(update={"samples": _fewer(entry.samples, config.samples)}) for entry in several)


def _fewer(one: int | None, other: int | None) -> int | None:
    return min((each for each in (one, other) if each is not None), default=None)


def suite_problems(config: FinalEvaluation, datasets: Sequence[str]) -> list[str]:
    """What keeps the attacks from being run on these sets (too few classes for a loss), one line each."""
    return [
        text
        for text in problems(Suite(name="final", datasets=tuple(dict.fromkeys(datasets)), attacks=entries(config)))
        if text.startswith("attacks.")
    ]
