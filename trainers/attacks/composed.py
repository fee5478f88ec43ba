"""Attacks made of others: several in turn on whoever is not fooled yet."""

from __future__ import annotations

from collections.abc import Callable

from trainers.attack_parameters import AAAgft, Ensemble, EvalAttackParameters
from trainers.attacks.case import Case, Outcome
from trainers.attacks.verdict import Worst

__all__ = ["composed"]

Runner = Callable[[Case, EvalAttackParameters], Outcome]


def composed(run: Runner) -> Callable[[Case, Ensemble | AAAgft], Outcome]:
    """The attack that runs `parameters.components(...)` in turn through `run`; `parts` names those that ran.

    Every part attacks the whole batch, so that forwards keep their shape, and counts only for images that no earlier
    part fooled: the same verdicts as if each part were given just the survivors. Ends when all are fooled, but `parts`
    lists all that were due, so that it does not depend on the batch.
    """

    def attack(case: Case, parameters: Ensemble | AAAgft) -> Outcome:
        components = parameters.components(norm=case.norm, num_classes=case.num_classes)
        worst = Worst(case.labels, case.images)
        for component in components:
            if worst.fooled.all():
                break
            outcome = run(case, component)
            worst.take(outcome.worst, outcome.adversarial)
        return Outcome(worst.images, worst, tuple(component.name for component in components))

    return attack
