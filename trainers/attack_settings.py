"""What all evaluation attacks' settings have in common: where they are legal, what they cost, what they are called.

Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from trainers.errors import UserError
from trainers.units import Frozen, OfEps

__all__ = ["LOSS_CLASSES", "Composed", "EvalAttackParameters", "Passes", "Target", "legal_losses"]

LOSS_CLASSES: Mapping[str, int] = {"ce": 2, "margin": 2, "dlr": 3, "dlr-targeted": 4}
"""The least number of classes for which a loss is defined: DLR divides by z_(1) - z_(3), its targeted form needs z_(4).

With one class fewer DLR is a difference divided by itself, +1 or -1: no gradient, so no attack.
"""

Target = Literal["none", "random", "least-likely"]
Passes = tuple[int, int]
"""Forward and backward passes of one image."""

BUDGET = ("steps", "queries")  # settings that `label` always names: the first of them that an attack has


class EvalAttackParameters(Frozen):
    """The settings of one attack, with what is fixed about it."""

    norms: ClassVar[tuple[Literal["linf", "l2"], ...]] = ("linf",)
    min_classes: ClassVar[int] = 2
    gradients: ClassVar[bool] = True  # does it ask for the model's gradients?
    keyed: ClassVar[bool] = True  # does an image's result depend on nothing but the image, its index and the seed?
    summary: ClassVar[str]
    citation: ClassVar[str]

    name: str

    def check(self, *, norm: str, num_classes: int, path: str = "attack") -> None:
        """Raise a `UserError` if the attack is not defined for this norm or so few classes."""
        from trainers.attack_parameters import legal_attacks  # the table of all attacks, to name those that are

        if norm not in self.norms:
            rule = f"{self.name!r} is defined in {' and '.join(self.norms)}, not in {norm}"
            raise UserError(f"{path}.name: {rule}; in {norm}: {', '.join(legal_attacks(num_classes, norm))}")
        if num_classes < self.min_classes:
            losses, attacks = ", ".join(legal_losses(num_classes)), ", ".join(legal_attacks(num_classes, norm))
            legal = f"with {num_classes}, legal losses: {losses}; legal attacks: {attacks}"
            rule = f"{self.name!r} needs at least {self.min_classes} classes, and here there are {num_classes}"
            raise UserError(f"{path}.name: {rule}; {legal if losses else 'an attack needs at least 2'}")

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        """What one image costs that is never fooled: the most that it can.

        Here, of an ascent: every iterate is looked at, with a gradient at all but the last; to find the least likely
        class, the image itself. Other attacks say what they cost.
        """
        steps, restarts = getattr(self, "steps", 1), getattr(self, "restarts", 1)
        return restarts * (steps + 1) + (getattr(self, "target", "none") == "least-likely"), restarts * steps

    @property
    def label(self) -> str:
        """A name for tables and files, of a-z, 0-9 and `-`: two that differ in any setting differ in it.

        The attack, its steps (`pgd-20`; with 5 restarts `pgd-20x5`), and whatever is not the default: `pgd-20-random`
        for a target, setting and value for others, such as `cw-20-confidence-0p5` or `pgd-20-step-size-1eps`.
        """
        fields = type(self).model_fields
        values = {name: getattr(self, name) for name in fields if name != "name"}
        words = [self.name]
        if budget := next((name for name in BUDGET if name in values), None):
            restarts = values.pop("restarts", 1)
            words.append(f"{values.pop(budget)}" + (f"x{restarts}" if restarts > 1 else ""))
        for name, value in values.items():
            if value != fields[name].default:
                words.append(_word(value) if name == "target" else f"{name.replace('_', '-')}-{_word(value)}")
        return "-".join(words)

    def resolved_step_size(self, eps: float) -> float:
        """`step_size` in pixels of [0, 1], for attacks that have one."""
        size: float | OfEps = getattr(self, "step_size")  # noqa: B009
        return size.of_eps * eps if isinstance(size, OfEps) else size


class Composed(EvalAttackParameters):
    """The settings of an attack that is made of others."""

    def components(self, *, norm: str, num_classes: int) -> tuple[EvalAttackParameters, ...]:
        """What runs, in this order."""
        raise NotImplementedError

    def passes(self, num_classes: int, *, norm: str = "linf") -> Passes:
        costs = [part.passes(num_classes, norm=norm) for part in self.components(norm=norm, num_classes=num_classes)]
        return sum(forward for forward, _ in costs), sum(backward for _, backward in costs)


def _word(value: Any) -> str:
    """A setting's value in a-z, 0-9 and `-`: 0.5 is `0p5`, 1e-05 is `1em05`, {of_eps: 0.5} is `0p5eps`."""
    if isinstance(value, OfEps):
        return f"{_word(value.of_eps)}eps"
    if isinstance(value, float):
        return repr(value).removesuffix(".0").replace(".", "p").replace("-", "m").replace("+", "")
    return str(value).lower()


def legal_losses(num_classes: int) -> tuple[str, ...]:
    """Losses that are defined for so many classes."""
    return tuple(name for name, least in LOSS_CLASSES.items() if num_classes >= least)
