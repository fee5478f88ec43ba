"""FGSM, PGD and C&W: the plain gradient attacks of an evaluation."""

from __future__ import annotations

import torch
from torch import Tensor

from trainers.attacks.case import Case, Outcome
from trainers.attacks.losses import LogitsLoss, aim, margin_loss
from trainers.attacks.projected import pgd
from trainers.draws import STREAMS, noise
from trainers.schema.attacks import CW, FGSM, PGD


def fgsm_attack(case: Case, parameters: FGSM) -> Outcome:
    """One step of eps from the image, x' = clip(x + eps * direction(grad loss(x))). Goodfellow et al. 2015."""
    settings = PGD(steps=1, random_start=False)
    return _ascend(case, aim(case.labels, case.targets(parameters.target)), settings, step_size=case.eps)


def pgd_attack(case: Case, parameters: PGD) -> Outcome:
    """`trainers.attacks.pgd` on the cross-entropy, from random starts. Madry et al. 2018.

    Final images: of the restarts' last iterates the one that fools, or else has the least margin. Looks at every
    iterate, the starts included.
    """
    loss = aim(case.labels, case.targets(parameters.target))
    return _ascend(case, loss, parameters, step_size=parameters.resolved_step_size(case.eps))


def cw_attack(case: Case, parameters: CW) -> Outcome:
    """PGD on the logit margin (`margin_loss`), in L-inf. Carlini and Wagner 2017; Madry et al. 2018, section 5.

    An image that is fooled by more than `confidence` has no gradient left and stays where it is.
    """
    settings = PGD(steps=parameters.steps, restarts=parameters.restarts)
    step_size = parameters.resolved_step_size(case.eps)
    return _ascend(case, lambda z: margin_loss(z, case.labels, parameters.confidence), settings, step_size=step_size)


def _ascend(case: Case, loss: LogitsLoss, settings: PGD, *, step_size: float) -> Outcome:
    """PGD on `loss`; of `settings`, steps, restarts and random_start are used.

    Ends when another restart cannot change anything.
    """
    worst = case.worst()
    finals = worst if case.skipping else case.worst()  # the record of the restarts' last iterates alone

    def seen(candidates: Tensor) -> Tensor:
        logits = case.ask(candidates, worst.done)
        worst.look(logits, candidates)
        return loss(logits)

    shape = tuple(case.images.shape[1:])
    for restart in range(settings.restarts):
        if finals.done.all():
            break
        start = torch.zeros_like(case.images)
        if settings.random_start:
            start = noise(case.seed, STREAMS["start"], restart, case.index, shape)
        final = pgd(
            seen, case.images, eps=case.eps, step_size=step_size, steps=settings.steps, start=start, norm=case.norm
        )
        with torch.no_grad():
            logits = case.ask(final, worst.done)
        worst.look(logits, final)
        finals.look(logits, final)
    return Outcome(finals.images, worst)
