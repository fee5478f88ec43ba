"""PMG-AFT by hand, against its equation in double precision, and TeCoA where its weights are 0."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.equations import ATTACK, GLOBAL_BATCH, Setting, assert_equals, colours, kl, log_p, setting
from trainers.objectives.pmg_aft import PMGAFT
from trainers.objectives.tecoa import TeCoA
from trainers.schema.training import AttackConfig
from trainers.schema.units import OfModel


def softmax(*logits: float) -> list[float]:
    return [math.exp(z) / sum(map(math.exp, logits)) for z in logits]


def divergence(q: list[float], p: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))


@pytest.mark.parametrize("reduction", ["batch_mean", "sum"])
def test_two_images_and_three_classes_give_the_loss_computed_by_hand(reduction: Any) -> None:
    here = colours(teacher=torch.eye(3)[[2, 1, 0]])  # the frozen encoder swaps the first and the last colour
    method = PMGAFT(logit_scale=2, adversarial_weight=0.5, clean_weight=3, kl_reduction=reduction)
    large = AttackConfig(eps=0.1, step_size=0.2, steps=1)  # both images become (0.7, 0.7, 0.1), whatever the start
    losses = method.loss(here.model, here.batch, large, context=here.context)
    high, low = (2 * x / math.sqrt(0.7**2 + 0.7**2 + 0.1**2) for x in (0.7, 0.1))
    attacked, frozen = softmax(high, high, low), softmax(low, high, high)
    label, adversarial = -math.log(attacked[0]), divergence(frozen, attacked)
    clean = (divergence(softmax(1.6, 1.2, 0), attacked) + divergence(softmax(1.2, 1.6, 0), attacked)) / 2
    parts = {"label": label, "adversarial": adversarial, "clean": clean}
    assert {name: part.item() for name, part in losses.parts.items()} == pytest.approx(parts, rel=1e-5)
    factor = 2 if reduction == "sum" else 1
    assert losses.total.item() == pytest.approx(label + factor * (0.5 * adversarial + 3 * clean), rel=1e-5)


OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "weights": {"adversarial_weight": 0.4, "clean_weight": 2.5},
    "adversarial": {"clean_weight": 0},
    "clean": {"adversarial_weight": 0, "clean_weight": 0.5},
    "detached": {"detach_clean": True},
    "sum": {"kl_reduction": "sum"},
    "imagenet": {"normalisation": "imagenet"},
    "scale": {"logit_scale": OfModel(of_model=0.3)},
    "official": {"logit_scale": 1, "kl_reduction": "sum", "normalisation": "imagenet"},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("tower", ["vit", "resnet"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_and_gradient_are_those_of_the_equation(options: dict[str, Any], tower: str, dtype: torch.dtype) -> None:
    a, b = options.get("adversarial_weight", 1), options.get("clean_weight", 1)
    scale = options.get("logit_scale", OfModel(of_model=1))

    clip_mean, clip_std = setting(tower).model.mean, setting(tower).model.std
    mean, std = clip_mean, clip_std
    if options.get("normalisation") == "imagenet":
        mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(1, 3, 1, 1)

    def undo(images: Tensor) -> Tensor:
        return (images - clip_mean) / clip_std * std + mean

    def log_probabilities(here: Setting, encoder: Any, images: Tensor) -> Tensor:
        v = encoder.visual((images - mean) / std)
        s = scale.of_model * here.model.logit_scale if isinstance(scale, OfModel) else scale
        return log_p(s * v / v.norm(dim=1, keepdim=True) @ here.context.class_embeddings.T)

    def label(here: Setting, images: Tensor) -> Tensor:
        return -here.of_label(log_probabilities(here, here.model, images))

    def loss(here: Setting, attacked: Tensor) -> Tensor:
        own, frozen = (log_probabilities(here, encoder, attacked) for encoder in (here.model, here.teacher))
        clean = log_probabilities(here, here.model, here.batch.images)
        clean = clean.detach() if options.get("detach_clean") else clean
        divergences = a * kl(frozen, own) + b * kl(clean, own)
        if options.get("kl_reduction") == "sum":
            return here.mean(label(here, attacked)) + divergences.sum()
        return here.mean(label(here, attacked) + divergences)

    assert_equals(PMGAFT(**options), label, loss, tower=tower, dtype=dtype, undo=undo)


@pytest.mark.parametrize("tower", ["vit", "resnet"])
def test_with_weights_of_0_it_is_tecoa_to_the_last_bit_and_nothing_else_is_computed(tower: str) -> None:
    here = setting(tower, torch.float32)
    context = type(here.context)(here.context.class_embeddings, 2, 1, GLOBAL_BATCH)  # no teacher either
    forwards: list[int] = []
    handle = here.model.visual.conv1.register_forward_hook(lambda *_: forwards.append(1))
    bare = PMGAFT(adversarial_weight=0, clean_weight=0).loss(here.model, here.batch, ATTACK, context=context)
    handle.remove()
    assert len(forwards) == ATTACK.steps + 1
    tecoa = TeCoA().loss(here.model, here.batch, ATTACK, context=context)
    assert torch.equal(bare.total, tecoa.total)
    weights = list(here.model.parameters())
    gradients = (torch.autograd.grad(losses.total, weights) for losses in (bare, tecoa))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_the_defaults_are_the_papers() -> None:
    method = PMGAFT()
    assert method.logit_scale == OfModel(of_model=1)
    assert (method.adversarial_weight, method.clean_weight) == (1, 1)
    assert (method.detach_clean, method.kl_reduction, method.normalisation) == (False, "batch_mean", "clip")
    assert method.needs_teacher
    assert not method.needs_clean_embeddings
