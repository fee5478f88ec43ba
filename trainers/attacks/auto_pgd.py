"""Auto-PGD with the cross-entropy, the DLR loss, and its targeted form. Croce and Hein, ICML 2020, arXiv:2003.01690."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainers.attacks.case import Case, Outcome
from trainers.attacks.geometry import direction, per_image
from trainers.attacks.losses import LogitsLoss, cross_entropy, dlr, dlr_targeted
from trainers.attacks.verdict import Worst
from trainers.draws import STREAMS, noise
from trainers.schema.attacks import APGDCE, APGDDLR, APGDT

MOMENTUM = 0.75  # alpha of algorithm 1: weight of the new step against the last one


def checkpoints(steps: int) -> tuple[int, ...]:
    """Steps after which progress is judged: ceil(p_j * steps), p_1 = 0.22, gaps falling by 0.03 down to 0.06.

    Section 3.2. In whole percent, so that no rounding of 0.22 + 0.19 + ... moves one.
    """
    percent, gap, found = 22, 22, []
    while percent <= 100:
        found.append(-(-percent * steps // 100))
        gap = max(gap - 3, 6)
        percent += gap
    return tuple(sorted(set(found)))


def apgd_ce_attack(case: Case, parameters: APGDCE) -> Outcome:
    """Auto-PGD on the cross-entropy."""
    return _restarts(case, lambda z: cross_entropy(z, case.labels), parameters)


def apgd_dlr_attack(case: Case, parameters: APGDDLR) -> Outcome:
    """Auto-PGD on the DLR loss; 3 classes or more."""
    return _restarts(case, lambda z: dlr(z, case.labels), parameters)


def apgd_t_attack(case: Case, parameters: APGDT) -> Outcome:
    """Auto-PGD on the targeted DLR loss, to the wrong classes that the clean image is likeliest to be; 4 or more."""
    wrong = case.clean().scatter(1, case.labels[:, None], -torch.inf)
    ranked = wrong.topk(min(parameters.targets, case.num_classes - 1), dim=1).indices
    worst = case.worst()
    for restart in range(parameters.restarts):
        for targets in ranked.T:
            start = _start(case, restart)
            _maximise(case, _towards(case.labels, targets), start, parameters.steps, parameters.rho, worst)
    return Outcome(worst.images, worst)


def _towards(labels: Tensor, targets: Tensor) -> LogitsLoss:
    return lambda z: dlr_targeted(z, labels, targets)


def _restarts(case: Case, loss: LogitsLoss, parameters: APGDCE | APGDDLR) -> Outcome:
    worst = case.worst()
    for restart in range(parameters.restarts):
        _maximise(case, loss, _start(case, restart), parameters.steps, parameters.rho, worst)
    return Outcome(worst.images, worst)


def _start(case: Case, restart: int) -> Tensor:
    """A point of the ball [B, 3, H, W]: uniform in L-inf; in L2 on its surface, as a draw of many pixels is longer."""
    draw = noise(case.seed, STREAMS["start"], restart, case.index, tuple(case.images.shape[1:]))
    return case.project(case.images + case.eps * draw)


def _gradient(case: Case, loss: LogitsLoss, worst: Worst) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Images -> their losses [B] and the gradient of the losses' sum; what the model says goes to `worst`."""

    def look(x: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            logits = case.ask(x, worst.done)
            losses = loss(logits)
            (gradient,) = torch.autograd.grad(losses.sum(), x)
        worst.look(logits.detach(), x)
        return losses.detach(), gradient

    return look


def _maximise(case: Case, loss: LogitsLoss, start: Tensor, steps: int, rho: float, worst: Worst) -> None:
    """Algorithm 1 from `start`: every image has a step of its own, 2 eps at first, and remembers its best point.

        z = P(x_k + eta * direction(gradient));   x_{k+1} = P(x_k + a (z - x_k) + (1 - a)(x_k - x_{k-1}))

    At a checkpoint an image halves its step and goes back to its best point if fewer than `rho` of the steps since the
    last checkpoint raised its loss, or if neither its step nor its best loss changed there. Ends when all are done.
    """
    if worst.done.all():
        return
    look = _gradient(case, loss, worst)
    x = previous = start
    losses, gradient = look(x)
    best, best_losses, best_gradient = x, losses, gradient
    eta = torch.full_like(losses, 2 * case.eps)
    rises = torch.zeros_like(losses)
    halved, losses_then, last = torch.zeros_like(losses, dtype=torch.bool), best_losses, 0
    judged = set(checkpoints(steps))
    for step in range(1, steps + 1):
        if worst.done.all():
            return
        ahead = case.project(x + per_image(eta, x) * direction(gradient, case.norm))
        share = MOMENTUM if step > 1 else 1.0
        x, previous = case.project(x + share * (ahead - x) + (1 - share) * (x - previous)), x
        before = losses
        losses, gradient = look(x)
        rises += losses > before
        better = losses > best_losses
        best, best_gradient = (
            torch.where(per_image(better, x), new, old) for new, old in ((x, best), (gradient, best_gradient))
        )
        best_losses = torch.maximum(losses, best_losses)
        if step in judged:
            stuck = ~halved & (best_losses == losses_then)
            halved = (rises < rho * (step - last)) | stuck
            eta = torch.where(halved, eta / 2, eta)
            x, gradient = (
                torch.where(per_image(halved, x), old, new) for new, old in ((x, best), (gradient, best_gradient))
            )
            losses = torch.where(halved, best_losses, losses)
            losses_then, last = best_losses, step
            rises = torch.zeros_like(rises)
