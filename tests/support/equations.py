"""The objectives' equations in plain double precision, and what is needed to compare a method with them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tests.support.small import FlatCLIP
from trainers.draws import noise
from trainers.model.robust import RobustCLIP
from trainers.objectives import Batch, Context, Objective
from trainers.schema.training import AttackConfig
from trainers.testing.towers import GLOBAL_BATCH, TOWERS, ExactCLIP, Setting, setting

__all__ = ["GLOBAL_BATCH", "TOWERS", "ExactCLIP", "Setting", "setting"]

ATTACK = AttackConfig(eps="4/255", step_size="3/255", steps=2)
NO_ATTACK = AttackConfig(eps=0)


def log_p(logits: Tensor) -> Tensor:
    """Logarithm of the softmax over classes."""
    return logits - logits.exp().sum(1, keepdim=True).log()


def kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """KL(q || p) [B]."""
    return (log_q.exp() * (log_q - log_p)).sum(1)


def plain_pgd(loss: Callable[[Tensor], Tensor], here: Setting) -> Tensor:
    """ATTACK on the sum of per-sample losses, as a plain loop."""
    clean, eps, step = here.batch.images, ATTACK.eps, ATTACK.resolved_step_size()
    x = clean + eps * noise(here.context.seed, here.context.epoch, 0, here.batch.index, tuple(clean.shape[1:]))
    x = x.clamp(clean - eps, clean + eps).clamp(0, 1)
    for _ in range(ATTACK.steps):
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(x).sum(), x)
        x = (x + step * gradient.sign()).clamp(clean - eps, clean + eps).clamp(0, 1)
    return x.detach()


Equation = Callable[[Setting, Tensor], Tensor]


def assert_equals(
    method: Objective,
    attacked: Equation,
    loss: Equation,
    *,
    tower: str,
    dtype: torch.dtype,
    undo: Callable[[Tensor], Tensor] = lambda images: images,
) -> None:
    """The method's loss and its gradient with respect to every weight are those of the equations.

    `attacked(setting, images)`: what the attack maximises, [B]. `loss(setting, attacked images)`: the loss, a scalar.
    In double precision the attacked images are those of a plain loop. In fp32, where the sign of a gradient near 0 is a
    matter of rounding, they are the method's own; `undo` turns what it hands to the encoder into images.
    """
    own, exact = setting(tower, dtype), setting(tower)
    inputs: list[Tensor] = []
    own.model.visual.conv1.register_forward_pre_hook(lambda _, args: inputs.append(args[0].detach()))  # type: ignore
    result = method.loss(own.model, own.batch, ATTACK, context=own.context).total
    assert result.dtype == dtype
    if dtype == torch.float64:
        tolerance, images = 1e-9, plain_pgd(lambda x: attacked(exact, x), exact)
    else:
        tolerance, images = 3e-4, undo(inputs[ATTACK.steps].double() * exact.model.std + exact.model.mean)
        assert (images - exact.batch.images).abs().max() < 1.001 * ATTACK.eps
    expected = loss(exact, images)
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=0)
    gradients = torch.autograd.grad(result, list(own.model.parameters()))
    wanted = torch.autograd.grad(expected, list(exact.model.parameters()))
    whole = torch.cat([gradient.flatten() for gradient in wanted]).norm()
    assert whole > 0
    for (name, _), gradient, value in zip(own.model.named_parameters(), gradients, wanted, strict=True):
        # a parameter whose gradient is 0 in theory (a key's bias) has one of rounding size
        assert (gradient - value).norm() <= tolerance * max(value.norm(), 1e-3 * whole), name


def colours(*, teacher: Tensor | None = None) -> Setting:
    """By hand: images of one pixel, an encoder that is the identity, three classes that are the axes, scale 10.

    The colours are (0.8, 0.6, 0) of class 0 and (0.6, 0.8, 0) of class 1.
    """
    images = torch.tensor([[0.8, 0.6, 0.0], [0.6, 0.8, 0.0]]).view(2, 3, 1, 1)
    frozen = RobustCLIP(FlatCLIP(torch.eye(3) if teacher is None else teacher, scale=10.0)).requires_grad_(False)
    batch = Batch(images, torch.tensor([0, 1]), torch.arange(2), frozen.embed(images))
    model = RobustCLIP(FlatCLIP(torch.eye(3), scale=10.0))
    return Setting(model, frozen, batch, Context(torch.eye(3), 0, 0, 2, frozen))
