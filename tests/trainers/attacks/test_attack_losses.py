"""What the evaluation attacks maximise, and which classes they aim at."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.support.attacked import case
from trainers.attacks.losses import aim, cross_entropy, dlr, dlr_targeted, margin_loss

ZERO, TWO = torch.tensor([0]), torch.tensor([2])


def test_losses_are_the_papers() -> None:
    logits = torch.tensor([[4.0, 3.0, 1.0, -2.0]])
    assert margin_loss(logits, ZERO).item() == -1
    assert margin_loss(logits, TWO).item() == 3
    assert margin_loss(logits, TWO, 0.5).item() == 0.5
    assert dlr(logits, ZERO).item() == pytest.approx(-1 / 3)
    assert dlr(logits, TWO).item() == pytest.approx(3 / 3)
    assert dlr_targeted(logits, ZERO, TWO).item() == pytest.approx(-3 / (4 - (1 - 2) / 2))
    assert aim(ZERO, TWO)(logits).item() == pytest.approx(-cross_entropy(logits, TWO).item())
    assert aim(ZERO, None)(logits).item() == pytest.approx(cross_entropy(logits, ZERO).item())


def test_dlr_does_not_change_with_the_scale_and_shift_of_the_logits() -> None:
    logits, labels = torch.randn(20, 6, generator=torch.Generator().manual_seed(0)), torch.arange(20) % 6
    targets = (labels + 2) % 6
    torch.testing.assert_close(dlr(100 * logits + 7, labels), dlr(logits, labels), rtol=1e-4, atol=1e-4)
    found = dlr_targeted(100 * logits + 7, labels, targets)
    torch.testing.assert_close(found, dlr_targeted(logits, labels, targets), rtol=1e-4, atol=1e-4)


def test_ties_of_all_logits_give_finite_losses_and_gradients() -> None:
    logits = torch.ones(1, 5, requires_grad=True)
    loss = dlr(logits, ZERO) + dlr_targeted(logits, ZERO, TWO)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(gradient).all()


def test_random_targets_are_uniform_over_the_wrong_classes_and_keyed_by_the_image() -> None:
    given = replace(case(), labels=torch.arange(5).repeat(400), index=torch.arange(2000), num_classes=5)
    targets = given.targets("random")
    assert targets is not None
    counts = torch.zeros(5, 5).index_put_((given.labels, targets), torch.ones(()), accumulate=True)
    assert counts.diagonal().sum() == 0
    off = counts[~torch.eye(5, dtype=torch.bool)]
    assert ((off - 100).square() / 100).sum() < 40  # chi-squared, 15 degrees of freedom
    part = replace(given, labels=given.labels[7:9], index=given.index[7:9])
    assert torch.equal(part.targets("random"), targets[7:9])
    assert not torch.equal(replace(given, seed=1).targets("random"), targets)


def test_least_likely_is_the_least_logit_of_the_clean_image_but_the_label() -> None:
    logits = torch.tensor([[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]])
    given = replace(case(), logits=lambda _: logits, labels=torch.tensor([0, 0]), num_classes=3)
    assert given.targets("least-likely").tolist() == [1, 2]
