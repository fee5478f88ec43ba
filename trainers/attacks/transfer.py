"""Transfer: a perturbation found on a surrogate model, shown to the model. Papernot et al. 2016, arXiv:1605.07277."""

from __future__ import annotations

from dataclasses import replace

import torch

from trainers.attacks.case import Case, Outcome
from trainers.attacks.run import run_attack
from trainers.errors import UserError
from trainers.schema.attacks import Transfer


def transferred(case: Case, parameters: Transfer) -> Outcome:
    """Runs `parameters.inner()` on `case.surrogate`; only its final images are looked at.

    The model is asked for one forward and no gradient, so a model whose gradients are masked is fooled all the same.
    """
    if case.surrogate is None:
        raise UserError("attack.name: 'transfer' needs a surrogate model, and none is given")
    inner = parameters.inner()
    # Whom the surrogate is fooled by says nothing about the model: its own record starts from nothing.
    others = replace(case, logits=case.surrogate, surrogate=None, done=None, skipping=False)
    found = run_attack(others, inner)
    worst = case.worst()
    with torch.no_grad():
        worst.look(case.ask(found.adversarial, worst.done), found.adversarial)
    return Outcome(found.adversarial, worst, (inner.name,), found.doubts)
