"""The objectives' equations in plain double precision, and what is needed to compare a method with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.support.small import FlatCLIP, small_clip, small_resnet_clip
from trainers.draws import noise
from trainers.model.robust import RobustCLIP
from trainers.objectives import Batch, Context, Objective
from trainers.schema.training import AttackConfig

ATTACK = AttackConfig(eps="4/255", step_size="3/255", steps=2)
NO_ATTACK = AttackConfig(eps=0)
TOWERS = {"vit": small_clip, "resnet": small_resnet_clip}
GLOBAL_BATCH = 9


class ExactCLIP(RobustCLIP):
    """RobustCLIP in double precision: the same functions, written once more without its fp32 checks and casts."""

    def __init__(self, clip: nn.Module) -> None:
        super().__init__(clip)
        self.double()

    def embed(self, images: Tensor) -> Tensor:
        out: Tensor = self.visual((images - self.mean) / self.std)
        return out

    def embed_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        visual = self.visual
        patches = visual.conv1((images - self.mean) / self.std).flatten(2).transpose(1, 2)
        first = visual.class_embedding.expand(len(images), 1, -1)
        tokens = visual.ln_pre(torch.cat([first, patches], 1) + visual.positional_embedding)
        out = visual.ln_post(visual.transformer(tokens)) @ visual.proj
        return out[:, 0], out[:, 1:]

    @staticmethod
    def unit(embeddings: Tensor) -> Tensor:
        return embeddings / embeddings.norm(dim=-1, keepdim=True)

    def logits(self, embeddings: Tensor, class_embeddings: Tensor, scale: float) -> Tensor:
        return scale * self.unit(embeddings) @ class_embeddings.T


@dataclass(frozen=True)
class Setting:
    """The last 5 samples of a global batch of 9, a random student, another random encoder as its teacher."""

    model: RobustCLIP
    teacher: RobustCLIP
    batch: Batch
    context: Context

    def cosines(self, model: RobustCLIP, images: Tensor) -> Tensor:
        """[B, K]"""
        embeddings = model.embed(images)
        return embeddings / embeddings.norm(dim=1, keepdim=True) @ self.context.class_embeddings.T

    def of_label(self, scores: Tensor) -> Tensor:
        """[B], each sample's own class."""
        return scores[torch.arange(len(scores)), self.batch.labels]

    def mean(self, losses: Tensor) -> Tensor:
        """A sum over these samples by the size of the global batch."""
        return losses.sum() / GLOBAL_BATCH


def setting(tower: str, dtype: torch.dtype = torch.float64) -> Setting:
    make = RobustCLIP if dtype == torch.float32 else ExactCLIP
    model, teacher = make(TOWERS[tower](0)), make(TOWERS[tower](1)).requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, model.image_size, model.image_size, generator=generator).to(dtype)
    texts = torch.nn.functional.normalize(torch.randn(2, 7, 16, generator=generator), dim=2).to(dtype)
    embeddings = teacher.embed(images)
    batch = Batch(images, torch.tensor([0, 6, 2, 3, 3]), torch.arange(4, 9), embeddings)
    return Setting(model, teacher, batch, Context(texts[0], 2, 1, GLOBAL_BATCH, teacher, texts[1]))


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
        tolerance, images = 1e-4, undo(inputs[ATTACK.steps].double() * exact.model.std + exact.model.mean)
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
