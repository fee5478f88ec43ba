"""Attacks on models that answer at random or hide their gradients: means over draws, stand-ins, and estimates."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from trainers.attacks.case import Case, LogitsFn, Outcome
from trainers.attacks.geometry import direction, per_image
from trainers.attacks.losses import margin_loss
from trainers.attacks.verdict import Worst
from trainers.draws import STREAMS, noise
from trainers.errors import UserError
from trainers.schema.adaptive import EOTPGD, SPSA


def eot_pgd_attack(case: Case, parameters: EOTPGD) -> Outcome:
    """x <- P(x + a direction(mean over draws of grad margin)), from one random start. Athalye et al. 2018.

    An iterate fools if the mean of its draws' logits does, and then that of as many fresh draws: no image is lost to
    one lucky draw. With `follow` surrogate the gradient is that of `case.surrogate`, a differentiable stand-in, at the
    same image (BPDA). On a model that is one function all draws are equal: this is `cw` with the same start.
    """
    leader: LogitsFn = case.logits
    if parameters.follow == "surrogate":
        if case.surrogate is None:
            raise UserError("attack.follow: surrogate needs a surrogate model, and none is given")
        leader = case.surrogate
    own = leader is case.logits

    def gradient(x: Tensor, worst: Worst) -> Tensor:
        total, said = torch.zeros_like(x), []
        for _ in range(parameters.draws):
            with torch.enable_grad():
                x.requires_grad_(True)
                logits = case.ask(x, worst.done) if own else leader(x)
                losses = margin_loss(logits, case.labels)
                found = torch.autograd.grad(losses.sum(), x, allow_unused=True)[0] if losses.requires_grad else None
            total = total if found is None else total + found
            said.append(logits.detach())
        x = x.detach()
        mean = torch.stack(said).mean(0) if own else _mean_logits(case, x, worst.done, parameters.draws)
        _look(case, worst, mean, x, parameters.draws)
        return total

    start = noise(case.seed, STREAMS["start"], 0, case.index, tuple(case.images.shape[1:]))
    reach = case.eps if case.norm == "linf" else case.eps / case.images[0].numel() ** 0.5
    return _ascend(case, gradient, case.project(case.images + reach * start), parameters)


def spsa_attack(case: Case, parameters: SPSA) -> Outcome:
    """As above, the gradient estimated: mean over probes v of (L(x + d v) - L(x - d v)) v / 2d, v of signs +-1.

    Uesato et al. 2018, algorithm 1, with signed steps of fixed length instead of Adam's. From the image itself.
    """
    size = parameters.probe
    reach = size if isinstance(size, float) else size.of_eps * case.eps
    shape, number = tuple(case.images.shape[1:]), 0

    def gradient(x: Tensor, worst: Worst) -> Tensor:
        nonlocal number
        total = torch.zeros_like(x)
        with torch.no_grad():
            _look(case, worst, _mean_logits(case, x, worst.done, parameters.draws), x, parameters.draws)
            for _ in range(parameters.probes):
                signs, number = noise(case.seed, STREAMS["probe"], number, case.index, shape).sign(), number + 1
                ahead, behind = (case.ask((x + way * reach * signs).clamp(0, 1), worst.done) for way in (1, -1))
                rise = margin_loss(ahead, case.labels) - margin_loss(behind, case.labels)
                total += per_image(rise, x) * signs
        return total

    return _ascend(case, gradient, case.images.clone(), parameters)


def _ascend(
    case: Case, gradient: Callable[[Tensor, Worst], Tensor], start: Tensor, parameters: EOTPGD | SPSA
) -> Outcome:
    """`steps` steps from `start` along what `gradient` says; it looks at every iterate, and here at the last."""
    worst, x, size = case.worst(), start, parameters.resolved_step_size(case.eps)
    for _ in range(parameters.steps):
        if worst.done.all():
            break
        x = case.project(x.detach() + size * direction(gradient(x, worst), case.norm))
    _look(case, worst, _mean_logits(case, x, worst.done, parameters.draws), x, parameters.draws)
    return Outcome(worst.images, worst)


def _look(case: Case, worst: Worst, logits: Tensor, x: Tensor, draws: int) -> None:
    """Record an iterate; whom its mean logits call fooled, as many fresh draws have to."""
    suspect = ~worst.done & (logits.argmax(1) != case.labels)
    if draws > 1 and suspect.any():
        logits = torch.where(suspect[:, None], _mean_logits(case, x, worst.done, draws), logits)
    worst.look(logits, x)


def _mean_logits(case: Case, x: Tensor, done: Tensor, draws: int) -> Tensor:
    """fp32 [B, K], the mean of so many forwards."""
    with torch.no_grad():
        return torch.stack([case.ask(x, done) for _ in range(draws)]).mean(0)
