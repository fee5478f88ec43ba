"""FARE by hand, and against its equation in double precision."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.support.equations import ATTACK, NO_ATTACK, Setting, assert_equals, colours, setting
from tests.support.small import small_clip
from trainers.attacks import pgd
from trainers.model.robust import RobustCLIP
from trainers.objectives.fare import FARE
from trainers.schema.training import AttackConfig

# The frozen encoder maps (a, b, c) to (c, 2 b, a): the two colours to (0, 1.2, 0.8) and (0, 1.6, 0.6).
MIRROR = torch.tensor([[0.0, 0.0, 1.0], [0.0, 2.0, 0.0], [1.0, 0.0, 0.0]])


def test_two_images_give_the_distance_computed_by_hand() -> None:
    here = colours(teacher=MIRROR)
    losses = FARE().loss(here.model, here.batch, NO_ATTACK, context=here.context)
    first, second = 0.8**2 + 0.6**2 + 0.8**2, 0.6**2 + 0.8**2 + 0.6**2
    assert losses.total.item() == pytest.approx((first + second) / 2, rel=1e-6)
    assert list(losses.parts) == ["feature"]


def test_the_attack_leads_away_from_the_frozen_embedding() -> None:
    here = colours(teacher=MIRROR)
    # whatever the start, one step of twice the radius ends in the corner (+, -, 0 at the edge of the pixels)
    large = AttackConfig(eps=0.1, step_size=0.2, steps=1)
    losses = FARE(clean_weight=0.25).loss(here.model, here.batch, large, context=here.context)
    first, second = 0.8**2 + 0.6**2 + 0.8**2, 0.6**2 + 0.8**2 + 0.6**2
    first_attacked, second_attacked = 0.9**2 + 0.7**2 + 0.8**2, 0.7**2 + 0.9**2 + 0.6**2
    feature, clean = (first_attacked + second_attacked) / 2, (first + second) / 2
    assert losses.parts["feature"].item() == pytest.approx(feature, rel=1e-6)
    assert losses.parts["clean"].item() == pytest.approx(clean, rel=1e-6)
    assert losses.total.item() == pytest.approx(0.75 * feature + 0.25 * clean, rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("tower", ["vit", "resnet"])
@pytest.mark.parametrize("clean_weight", [0, 0.3])
def test_loss_and_gradient_are_those_of_the_equation(clean_weight: float, tower: str, dtype: torch.dtype) -> None:
    def distance(here: Setting, images: Tensor) -> Tensor:
        difference = here.model.embed(images) - here.teacher.embed(here.batch.images)
        return (difference**2).sum(1)

    def loss(here: Setting, attacked: Tensor) -> Tensor:
        own = (1 - clean_weight) * distance(here, attacked) + clean_weight * distance(here, here.batch.images)
        return here.mean(own)

    assert_equals(FARE(clean_weight=clean_weight), distance, loss, tower=tower, dtype=dtype)


def test_it_needs_neither_labels_nor_text_and_by_default_no_clean_forward() -> None:
    here = setting("vit", torch.float32)
    forwards: list[int] = []
    handle = here.model.visual.conv1.register_forward_hook(lambda *_: forwards.append(1))
    with_text = FARE().loss(here.model, here.batch, ATTACK, context=here.context).total
    handle.remove()
    assert len(forwards) == ATTACK.steps + 1
    blind = Setting(here.model, here.teacher, here.batch, here.context)
    blind.batch.labels.fill_(0)
    blind.context.class_embeddings.fill_(torch.nan)
    assert torch.equal(FARE().loss(blind.model, blind.batch, ATTACK, context=blind.context).total, with_text)


def official_attack(loss: Callable[[Tensor], Tensor], images: Tensor, start: Tensor, eps: float, steps: int) -> Tensor:
    """chs20/RobustVLM at 7de10ee, train/pgd_train.py, in linf with steps of eps / 2: the start is not clipped."""
    perturbation, velocity = eps * start, torch.zeros_like(images)
    for _ in range(steps):
        perturbation = perturbation.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(images + perturbation).mean(), perturbation)
        velocity = (0.9 * velocity + gradient.sign()).sign()
        perturbation = (perturbation.detach() + eps / 2 * velocity).clamp(-eps, eps)
        perturbation = (images + perturbation).clamp(0, 1) - images
    return (images + perturbation).detach()


@pytest.mark.parametrize("steps", [2, 10])
def test_the_official_attack_is_this_one_but_for_its_start_where_pixels_are_saturated(steps: int) -> None:
    model, generator = RobustCLIP(small_clip()).eval(), torch.Generator().manual_seed(0)
    inside = 0.1 + 0.8 * torch.rand(8, 3, 32, 32, generator=generator)
    ends = (torch.rand(inside.shape, generator=generator) < 0.5).float()
    saturated = torch.rand(inside.shape, generator=generator) < 1 / 6
    start = 2 * torch.rand(inside.shape, generator=generator) - 1
    shares = []
    for images in (inside, torch.where(saturated, ends, inside)):
        target = model.embed(images).detach()

        def distance(x: Tensor, target: Tensor = target) -> Tensor:
            return (model.embed(x) - target).square().sum(1)

        own = pgd(distance, images, eps=2 / 255, step_size=1 / 255, steps=steps, start=start, momentum=0.9)
        official = official_attack(distance, images, start, 2 / 255, steps)
        shares.append(((own - official).abs() > 1e-6).float().mean().item())
    assert shares[0] < 1e-3, "but for signs of gradients that are 0 to rounding"
    assert 0.03 < shares[1] < 0.25
