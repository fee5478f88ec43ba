"""AutoAttack of the package `pyautoattack`, kept from everything that it would otherwise touch."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyautoattack import checks
from torch import Tensor

from trainers.attacks.case import Case, LogitsFn, Outcome
from trainers.schema.attacks import AutoAttack

NORMS = {"linf": "Linf", "l2": "L2"}
DOUBTS = {  # a part of the package's warning -> what it means
    "randomized defense": "randomised: the same images gave different logits, so gradients and verdicts are chance",
    "dynamic defense": "dynamic: the model computes gradients while it answers, which this attack does not see through",
    "probability distribution": "its output looks like probabilities and not like logits, which hides gradients",
    "zero gradient": "no gradient: the loss of some images does not change with their pixels",
    "Square Attack has decreased": "Square, which needs no gradients, fooled images that the attacks by gradients left "
                                   "right: gradients may be masked",
}  # fmt: skip


def autoattack(case: Case, parameters: AutoAttack) -> Outcome:
    """`standard`: APGD-CE, APGD-T, FAB-T, Square, each on the images that are left; parts that the classes forbid go.

    It is given the images that are not done. Its starts are drawn for the batch, one generator for all images, seeded
    by `case.seed`: the same batch gives the same result, another division into batches may give another on a few
    images. (Our own attacks do not.) It is run in a fork of the random state, sees input gradients only (FAB calls
    `backward`), and the final images are projected once more. What its own checks of the model find is in the
    outcome's `doubts`; the count of gradients that one of them keeps for the process starts from nothing here.
    """
    import pyautoattack  # 42 MB that a machine which only trains can do without

    device, worst = case.images.device, case.worst()
    parts = parameters.parts(case.num_classes)
    rows = (~worst.done).nonzero().squeeze(1)
    if len(rows) == 0:
        return Outcome(case.images, worst, parts)
    tracer = sys.gettrace()  # its check for dynamic defences removes any
    checks.funcs.update(dict.fromkeys(checks.funcs, 0))
    random_state = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with random_state, torch.enable_grad(), _warnings() as doubts:
        package: Any = pyautoattack.AutoAttack(
            input_gradients_only(case.logits),  # it takes any callable
            attacks=list(parts),
            version="custom",
            norm=NORMS[case.norm],
            eps=case.eps,
            seed=case.seed,
            device=device,
        )
        package.apgd.n_restarts = package.fab.n_restarts = 1
        targets = min(parameters.targets, case.num_classes - 1)
        package.apgd_targeted.n_target_classes = package.fab.n_target_classes = targets
        try:
            found, _ = package.run_standard_evaluation(case.images[rows], case.labels[rows], batch_size=len(rows))
        finally:
            sys.settrace(tracer)
    adversarial = case.project(case.images.index_copy(0, rows, found.detach()))
    with torch.no_grad():
        worst.look(case.ask(adversarial, worst.done), adversarial)
    return Outcome(adversarial, worst, parts, tuple(doubts))


@contextmanager
def _warnings() -> Iterator[dict[str, None]]:
    """What the package warns of meanwhile, in our words and each once; nothing of it reaches a log."""
    found: dict[str, None] = {}

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            text = " ".join(record.getMessage().split()).partition(" See flags_doc")[0]
            found[next((ours for part, ours in DOUBTS.items() if part in text), text)] = None

    logger, handler = logging.getLogger("auto-attack"), Kept()
    before = logger.level, logger.propagate
    logger.setLevel(logging.WARNING)
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield found
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


def input_gradients_only(logits_fn: LogitsFn) -> LogitsFn:
    """The same function, through which `backward` reaches the images and no weight."""

    def isolated(images: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and images.requires_grad):
            with torch.no_grad():
                return logits_fn(images)
        logits: Tensor = _InputGradient.apply(images, logits_fn)
        return logits

    return isolated


class _InputGradient(torch.autograd.Function):
    """logits_fn(images) as one node, whose backward asks for the gradient of the images and of nothing else."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, logits_fn: LogitsFn) -> Tensor:
        with torch.enable_grad():
            ctx.inner = images.detach().requires_grad_(True)
            ctx.logits = logits_fn(ctx.inner)
        return ctx.logits.detach().clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (found,) = torch.autograd.grad(ctx.logits, ctx.inner, gradient, retain_graph=True)
        return found, None
