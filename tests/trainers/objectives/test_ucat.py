"""UCAT by hand, against its equation in double precision, and TeCoA where its weight is 0."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from tests.support.equations import ATTACK, NO_ATTACK, Setting, assert_equals, colours, setting
from trainers.objectives.tecoa import TeCoA
from trainers.objectives.ucat import UCAT, dirichlet_kl
from trainers.schema.units import OfModel


def test_of_two_flat_dirichlets_the_divergence_is_a_difference_of_logarithms_of_factorials() -> None:
    """Dir(1, 1, 1) has density 2, Dir(2, 2, 2) has 120 xyz: KL(1 || 2) = log(2 / 120) - 3 E[log x]."""
    one, two = torch.ones(1, 3, dtype=torch.float64), torch.full((1, 3), 2.0, dtype=torch.float64)
    mean_log = -1.5  # psi(1) - psi(3)
    assert dirichlet_kl(one, two).item() == pytest.approx(math.log(2 / 120) - 3 * mean_log)
    assert dirichlet_kl(two, two).item() == pytest.approx(0, abs=1e-12)


def test_two_images_and_three_classes_give_the_loss_computed_by_hand() -> None:
    here = colours(teacher=torch.eye(3)[[1, 0, 2]])  # the frozen encoder swaps the two colours
    losses = UCAT(concentration=1.0, dirichlet_weight=5).loss(here.model, here.batch, NO_ATTACK, context=here.context)
    own, frozen = [math.exp(c + 1) + 1e-6 for c in (0.8, 0.6, 0)], [math.exp(c + 1) + 1e-6 for c in (0.6, 0.8, 0)]
    divergence = sum(math.lgamma(b) - math.lgamma(a) for a, b in zip(own, frozen, strict=True))  # equal totals
    psi = [(math.lgamma(a + 1e-5) - math.lgamma(a - 1e-5)) / 2e-5 for a in own]
    divergence += sum((a - b) * each for a, b, each in zip(own, frozen, psi, strict=True))  # their differences add to 0
    label = math.log(sum(math.exp(10 * c) for c in (0.8, 0.6, 0))) - 8
    assert losses.parts["label"].item() == pytest.approx(label, rel=1e-5)
    assert losses.parts["dirichlet"].item() == pytest.approx(5 / (1 + math.exp(2)) * divergence, rel=1e-5)
    assert losses.total.item() == pytest.approx(sum(each.item() for each in losses.parts.values()), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("tower", ["vit", "resnet"])
@pytest.mark.parametrize(("weight", "k"), [(1e5, 0.07), (40.0, 0.5)], ids=["paper", "other"])
def test_loss_and_gradient_are_those_of_the_equation(weight: float, k: float, tower: str, dtype: torch.dtype) -> None:
    def cosines(here: Setting, embeddings: Tensor) -> Tensor:
        return embeddings @ here.context.class_embeddings.T / embeddings.norm(dim=1, keepdim=True)

    def label(here: Setting, images: Tensor) -> Tensor:
        logits = here.model.logit_scale * cosines(here, here.model.embed(images))
        return -here.of_label(logits.log_softmax(1))

    def loss(here: Setting, attacked: Tensor) -> Tensor:
        own, frozen = (
            Dirichlet(1e-6 + torch.exp((cosines(here, embeddings) + 1) / k), validate_args=False)
            for embeddings in (here.model.embed(attacked), here.teacher.embed(here.batch.images))
        )
        return here.mean(label(here, attacked) + weight / (1 + math.exp(2 / k)) * kl_divergence(own, frozen))

    assert_equals(UCAT(dirichlet_weight=weight, concentration=k), label, loss, tower=tower, dtype=dtype)


def test_with_a_weight_of_0_it_is_tecoa_to_the_last_bit() -> None:
    here = setting("vit", torch.float32)
    bare, tecoa = (
        method.loss(here.model, here.batch, ATTACK, context=here.context).total
        for method in (UCAT(dirichlet_weight=0), TeCoA())
    )
    assert torch.equal(bare, tecoa)


def test_the_defaults_are_the_official_ones() -> None:
    method = UCAT()
    assert (method.dirichlet_weight, method.concentration, method.logit_scale) == (1e5, 0.07, OfModel(of_model=1))
    assert method.needs_clean_embeddings
    assert not method.needs_teacher
