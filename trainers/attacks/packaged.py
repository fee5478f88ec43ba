"""AutoAttack of the package `pyautoattack`, kept from everything that it would otherwise touch."""

from __future__ import annotations

import logging
import sys
from typing import Any

import pyautoattack
import torch
from torch import Tensor

from trainers.attacks.case import Case, LogitsFn, Outcome
from trainers.schema.attacks import AutoAttack

NORMS = {"linf": "Linf", "l2": "L2"}


def autoattack(case: Case, parameters: AutoAttack) -> Outcome:
    """`standard`: APGD-CE, APGD-T, FAB-T, Square, each on the images that are left; parts that the classes forbid go.

    It is given the images that are not done. Its starts are drawn for the batch, one generator for all images, seeded
    by `case.seed`: the same batch gives the same result, another division into batches may give another on a few
    images. (Our own attacks do not.) It is run in a fork of the random state, sees input gradients only (FAB calls
    `backward`), and the final images are projected once more.
    """
    device, worst = case.images.device, case.worst()
    parts = parameters.parts(case.num_classes)
    rows = (~worst.done).nonzero().squeeze(1)
    if len(rows) == 0:
        return Outcome(case.images, worst, parts)
    tracer = sys.gettrace()  # its check for dynamic defences removes any
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.enable_grad():
        package: Any = pyautoattack.AutoAttack(
            input_gradients_only(case.logits),  # it takes any callable
            attacks=list(parts),
            version="custom",
            norm=NORMS[case.norm],
            eps=case.eps,
            seed=case.seed,
            device=device,
        )
        package.logger.setLevel(logging.WARNING)
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
    return Outcome(adversarial, worst, parts)


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
