"""Attacks made of others: several in turn on whoever is not fooled yet."""

from __future__ import annotations

from dataclasses import replace

from trainers.attacks.case import Case, Outcome
from trainers.attacks.run import run_attack
from trainers.schema.attacks import Composed


def composed(case: Case, parameters: Composed) -> Outcome:
    """Runs `parameters.components(...)` in turn; `parts` names those that ran.

    Every part is given the whole batch, with the images that an earlier part fooled as done: the same verdicts as if it
    were given just the survivors. With nobody left a part ends at once; `parts` lists it all the same, so that it does
    not depend on the batch.
    """
    components = parameters.components(norm=case.norm, num_classes=case.num_classes)
    worst, doubts = case.worst(), dict[str, None]()
    for component in components:
        found = run_attack(replace(case, done=worst.done), component)
        worst.take(found.worst)
        doubts |= dict.fromkeys(found.doubts)
    return Outcome(worst.images, worst, tuple(component.name for component in components), tuple(doubts))
