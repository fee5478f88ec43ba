"""AutoAttack of the package: what the wrapper adds and what it must not change."""

from __future__ import annotations

from dataclasses import replace

import pyautoattack
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.attacked import CLASSES, case, network
from trainers.attacks import Case, Outcome, run_attack
from trainers.attacks.packaged import input_gradients_only
from trainers.schema.attacks import AutoAttack, Transfer


class Counted:
    """A model's passes of one image: `forwards`, `backwards`, each call of any batch as one."""

    def __init__(self, classes: int) -> None:
        self.net, self.forwards, self.backwards = network(classes), 0, 0

    def __call__(self, images: Tensor) -> Tensor:
        self.forwards += 1
        logits: Tensor = self.net(images)
        if logits.requires_grad:
            logits.register_hook(self._backward)
        return logits

    def _backward(self, _: Tensor) -> None:
        self.backwards += 1


@pytest.mark.slow
@pytest.mark.parametrize(("classes", "targets"), [(2, 1), (3, 2), (10, 9)])
def test_the_wrapper_finds_what_the_bare_package_finds_with_any_number_of_classes(classes: int, targets: int) -> None:
    given = case(number=24, classes=classes)
    found = run_attack(given, AutoAttack())
    parts = {2: ["apgd-ce"], 3: ["apgd-ce", "apgd-dlr"], 10: ["apgd-ce", "apgd-t"]}[classes] + ["fab-t", "square"]
    bare = pyautoattack.AutoAttack(
        network(classes), attacks=parts, version="custom", norm="Linf", eps=given.eps, seed=0
    )
    bare.apgd.n_restarts = bare.fab.n_restarts = 1
    bare.apgd_targeted.n_target_classes = bare.fab.n_target_classes = targets
    with torch.random.fork_rng():
        expected, _ = bare.run_standard_evaluation(given.images, given.labels, batch_size=24)
    assert found.parts == tuple(parts)
    torch.testing.assert_close(found.adversarial, expected, rtol=0, atol=1e-6)
    assert 0 < found.worst.fooled.sum() < 24


@pytest.mark.slow
def test_images_that_are_done_are_not_attacked_and_the_others_as_if_alone() -> None:
    given = case(number=12)
    done = torch.arange(12) % 3 == 0
    rest = replace(given, images=given.images[~done], labels=given.labels[~done], index=given.index[~done])
    found, alone = run_attack(replace(given, done=done), AutoAttack()), run_attack(rest, AutoAttack())
    assert torch.equal(found.worst.images[~done], alone.worst.images)
    assert torch.equal(found.worst.images[done], given.images[done])
    everyone = replace(given, done=torch.ones(12, dtype=torch.bool), logits=refusing)
    assert isinstance(run_attack(everyone, AutoAttack()), Outcome)


# What the package's own checks find in a model, in a case that is quick: few images, which APGD fools at once.


def doubts(given: Case) -> list[str]:
    """The first words of each."""
    found = run_attack(given, AutoAttack()).doubts
    assert len(set(found)) == len(found)
    return sorted(doubt.partition(":")[0].partition(",")[0] for doubt in found)


def chance(images: Tensor) -> Tensor:
    logits: Tensor = network()(images)
    return logits + torch.rand(len(images), CLASSES)


def learning(images: Tensor) -> Tensor:
    """Improves its images by a gradient before it looks at them."""
    with torch.enable_grad():
        x = images.detach().clone().requires_grad_(True)
        network()(x).sum().backward()
    assert x.grad is not None
    logits: Tensor = network()(images + 1e-3 * x.grad)
    return logits


def flat(images: Tensor) -> Tensor:
    """In steps: a gradient of nought everywhere."""
    logits: Tensor = network()((images * 8).round() / 8)
    return logits + 0 * images.sum()


def probabilities(images: Tensor) -> Tensor:
    logits: Tensor = network()(images)
    return logits.softmax(1)


def test_what_autoattack_doubts_is_in_the_outcome_and_in_no_log(caplog: pytest.LogCaptureFixture) -> None:
    given = case(number=2, strength=0.5)
    assert doubts(given) == []
    assert "randomised" in doubts(replace(given, logits=chance))
    assert "dynamic" in doubts(replace(given, logits=learning))
    assert "its output looks like probabilities and not like logits" in doubts(replace(given, logits=probabilities))
    assert doubts(given) == [], "a model that was attacked before says nothing about this one"
    assert not caplog.records


@pytest.mark.slow
def test_a_search_that_finds_what_gradients_do_not_is_a_doubt() -> None:
    given = case(number=8, strength=0.15)
    given = replace(given, logits=flat, labels=flat(given.images).argmax(1))
    assert doubts(given) == ["Square", "no gradient"]


def test_an_attack_that_is_made_of_autoattack_hands_its_doubts_on() -> None:
    given = replace(case(number=2, strength=0.5), surrogate=probabilities)
    (doubt,) = run_attack(given, Transfer(attack="autoattack")).doubts
    assert doubt.startswith("its output looks like probabilities")


def refusing(_: Tensor) -> Tensor:
    raise AssertionError("logits were asked for")


@pytest.mark.slow
@pytest.mark.parametrize("classes", [2, 3, 10])
def test_autoattack_costs_no_more_passes_than_it_says(classes: int) -> None:
    model = Counted(classes)
    given = replace(case(number=3, strength=1e-5, classes=classes), logits=model)
    assert not run_attack(given, AutoAttack()).worst.fooled.any()
    forward, backward = AutoAttack().passes(classes)
    assert 0.99 * forward < model.forwards <= forward
    assert model.backwards == backward


def test_backward_through_the_isolated_function_reaches_the_images_and_no_weight() -> None:
    net, x = network(), case().images.clone().requires_grad_(True)
    logits = input_gradients_only(net)(x)
    logits[:, 1].sum().backward(retain_graph=True)
    first = x.grad.clone()
    x.grad = None
    logits[:, 2].sum().backward()
    assert all(parameter.grad is None for parameter in net.parameters())
    expected = x.detach().clone().requires_grad_(True)
    torch.testing.assert_close(first, torch.autograd.grad(net(expected)[:, 1].sum(), expected)[0])
    torch.testing.assert_close(x.grad, torch.autograd.grad(net(expected)[:, 2].sum(), expected)[0])
    assert F.mse_loss(logits, net(x)) == 0
