"""FGSM, PGD and C&W of an evaluation, against plain code and closed forms."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.attacked import case
from trainers.attacks import Case, Worst, pgd, predict, run_attack
from trainers.draws import noise
from trainers.schema.attacks import CW, FGSM, PGD
from trainers.schema.units import OfEps


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_pgd_looks_at_every_iterate_of_the_training_attack_from_a_start_keyed_by_seed_and_restart(norm: str) -> None:
    given, seen = replace(case(norm, number=24), seed=3), []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return given.logits(x)

    def loss(x: Tensor) -> Tensor:
        return F.cross_entropy(given.logits(x), given.labels, reduction="none")

    found = run_attack(replace(given, logits=watched), PGD(steps=7, restarts=2))
    assert len(seen) == 16
    finals, looks = Worst(given.labels, given.images), Worst(given.labels, given.images)
    for restart in (0, 1):
        start = noise(3, 0, restart, given.index, (3, 8, 8))
        expected = pgd(
            loss, given.images, eps=given.eps, step_size=given.eps / 4, steps=7, start=start, norm=given.norm
        )
        assert torch.equal(seen[8 * restart + 7], expected)
        finals.look(given.logits(expected), expected)
    for x in seen:
        looks.look(given.logits(x), x)
    assert torch.equal(found.adversarial, finals.images)
    assert torch.equal(found.worst.images, looks.images)
    assert torch.equal(found.worst.margin, looks.margin)


def test_an_image_is_fooled_if_only_the_start_fools_it() -> None:
    # One pixel; the label is right wherever x < 0.55, and the gradient leads the attack back below it.
    def logits(x: Tensor) -> Tensor:
        x = x.flatten(1)
        return torch.cat([torch.zeros_like(x), (x - 0.55).sign() + (0.5 - x) - (0.5 - x).detach()], dim=1)

    index = torch.arange(40)
    start = 0.5 + 0.1 * noise(0, 0, 0, index, (1,)).squeeze(1)
    given = Case(logits, torch.full((40, 1, 1, 1), 0.5), torch.zeros(40, dtype=torch.int64), index, 0.1, 2)
    found = run_attack(given, PGD(steps=2, step_size=0.1)).worst
    assert torch.equal(found.fooled, start > 0.55)
    assert 5 < found.fooled.sum() < 35


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fgsm_is_one_step_of_eps_from_the_image(norm: str) -> None:
    given = case(norm, number=12)
    x = given.images.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(F.cross_entropy(given.logits(x), given.labels, reduction="sum"), x)
    length = gradient.flatten(1).norm(dim=1)[:, None, None, None]
    step = gradient.sign() if norm == "linf" else gradient / length
    expected = (given.images + given.eps * step).clamp(0, 1)
    torch.testing.assert_close(run_attack(given, FGSM()).adversarial, expected)
    torch.testing.assert_close(
        run_attack(given, PGD(steps=1, step_size=OfEps(of_eps=1), random_start=False)).adversarial, expected
    )


def test_more_restarts_fool_at_least_whom_fewer_fool() -> None:
    given = case(number=48)
    one, five = (run_attack(given, PGD(steps=1, restarts=number)) for number in (1, 5))
    assert (five.worst.fooled >= one.worst.fooled).all()
    assert (five.worst.margin <= one.worst.margin).all()
    assert (five.worst.margin < one.worst.margin).any()


def test_cw_takes_its_maximum_over_wrong_classes_only() -> None:
    weight = torch.randn(48, generator=torch.Generator().manual_seed(0))

    def all_negative(x: Tensor) -> Tensor:
        rise = (x - 0.5).flatten(1) @ weight
        return torch.stack([rise * 0 - 10, rise - 20, rise * 0 - 50], dim=1)  # the label's logit is constant

    images = torch.full((2, 3, 4, 4), 0.5)
    given = Case(all_negative, images, torch.zeros(2, dtype=torch.int64), torch.arange(2), 0.1, 3)
    found = run_attack(given, CW())
    expected = 10 - 0.1 * weight.abs().sum()
    torch.testing.assert_close(found.worst.margin, expected.expand(2))


def test_cw_stops_pushing_beyond_its_confidence() -> None:
    given = case(number=32, strength=0.2)
    shallow, deep = (run_attack(given, CW(confidence=kappa)).adversarial for kappa in (0.0, 1e6))
    margins = [predict(given.logits(x), given.labels)[1].mean() for x in (shallow, deep)]
    assert margins[1] < margins[0] - 1
