"""What every training attack and every evaluation attack must do."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from trainers.attacks import Attack, Case, Outcome, predict, run_attack
from trainers.draws import noise
from trainers.schema.attacks import EvalAttackParameters

# Training attacks.


def length(difference: Tensor, norm: str) -> Tensor:
    """Of each image [B]."""
    flat = difference.double().flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt()


def small_network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1)).eval()


def images(number: int = 8) -> Tensor:
    return torch.rand(number, 3, 3, 3, generator=torch.Generator().manual_seed(1))


def it_stays_in_the_ball_and_among_the_images(attack: Attack, norm: str) -> None:
    for steps, eps in itertools.product((0, 1, 5), (1 / 255, 0.3)):
        _stays(attack, norm, steps, eps)


def _stays(attack: Attack, norm: str, steps: int, eps: float) -> None:
    points, model = images(), small_network()
    points[0], points[1] = 0, 1  # corners of the cube of pixels
    start = noise(0, 0, 0, torch.arange(8), (3, 3, 3))
    adversarial = attack(lambda x: model(x).squeeze(1), points, eps=eps, step_size=eps, steps=steps, start=start)
    assert (length(adversarial - points, norm) <= eps + 2**-22).all()
    assert (length(adversarial - points, norm) > 0.01 * eps).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad


def an_image_with_a_gradient_of_0_stays_at_its_start_and_spoils_no_other(attack: Attack) -> None:
    model, points, start = small_network(), images(), noise(0, 0, 0, torch.arange(8), (3, 3, 3))
    flat = torch.tensor([1.0, 0, 1, 1, 1, 1, 1, 1])
    settings: dict[str, Any] = {"eps": 0.1, "step_size": 0.05, "steps": 3, "start": start}
    adversarial = attack(lambda x: flat * model(x).squeeze(1), points, **settings)
    untouched = attack(lambda x: 0 * model(x).squeeze(1), points, **settings)
    assert torch.isfinite(adversarial).all()
    assert torch.equal(adversarial[1], untouched[1])
    assert torch.equal(untouched, attack(lambda x: model(x).squeeze(1), points, **{**settings, "steps": 0}))
    assert (adversarial[flat > 0] != untouched[flat > 0]).any(dim=(1, 2, 3)).all()


def _scaled(model: nn.Module, size: float, x: Tensor) -> Tensor:
    out: Tensor = size * model(x).squeeze(1)
    return out


def the_size_of_the_loss_does_not_matter(attack: Attack) -> None:
    model, points, start = small_network(), images(), noise(0, 0, 0, torch.arange(8), (3, 3, 3))
    settings: dict[str, Any] = {"eps": 0.1, "step_size": 0.05, "steps": 3, "start": start}
    plain = attack(lambda x: model(x).squeeze(1), points, **settings)
    for size in (1e-30, 1e30):
        scaled = attack(partial(_scaled, model, size), points, **settings)
        torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-4)


def a_radius_of_zero_is_the_identity(attack: Attack) -> None:
    start = torch.ones(8, 3, 3, 3)
    adversarial = attack(
        lambda x: small_network()(x).squeeze(1), images(), eps=0.0, step_size=0.1, steps=3, start=start
    )
    assert torch.equal(adversarial, images())


def it_does_not_lower_the_loss_below_that_of_the_start(attack: Attack) -> None:
    model, points, start = small_network(), images(), torch.zeros(8, 3, 3, 3)
    adversarial = attack(lambda x: model(x).squeeze(1), points, eps=0.05, step_size=0.01, steps=5, start=start)
    assert (model(adversarial) > model(points)).all()


def the_same_noise_gives_the_same_images_in_any_order_and_any_batch(attack: Attack) -> None:
    model, points, index = small_network(), images(), torch.arange(8)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])

    def run(rows: Tensor) -> Tensor:
        start = noise(5, 0, 0, index[rows], (3, 3, 3))
        return attack(lambda x: model(x).squeeze(1), points[rows], eps=0.1, step_size=0.05, steps=3, start=start)

    whole = run(index)
    assert torch.equal(run(index), whole)
    torch.testing.assert_close(run(order), whole[order])
    torch.testing.assert_close(run(index[2:5]), whole[2:5])


def it_leaves_gradients_mode_and_random_state_alone(attack: Attack) -> None:
    model, points, state = small_network().train(), images(), torch.random.get_rng_state()
    list(model.children())[3].eval()
    with torch.no_grad():  # also where the caller has gradients off
        attack(lambda x: model(x).squeeze(1), points, eps=0.1, step_size=0.05, steps=2, start=torch.zeros(8, 3, 3, 3))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert not list(model.children())[3].training
    assert points.grad is None
    assert not points.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)


OF_TRAINING = (
    an_image_with_a_gradient_of_0_stays_at_its_start_and_spoils_no_other,
    the_size_of_the_loss_does_not_matter,
    a_radius_of_zero_is_the_identity,
    it_does_not_lower_the_loss_below_that_of_the_start,
    the_same_noise_gives_the_same_images_in_any_order_and_any_batch,
    it_leaves_gradients_mode_and_random_state_alone,
)


def training_attack_contract(attack: Attack) -> dict[str, Callable[[], None]]:
    """The checks by name, in either norm, with and without momentum."""
    found: dict[str, Callable[[], None]] = {}
    variants: Any = itertools.product(("linf", "l2"), (0.0, 0.9))
    for norm, momentum in variants:
        own: Any = partial(attack, norm=norm, momentum=momentum)
        checks = {check.__name__: partial(check, own) for check in OF_TRAINING}
        checks["it_stays_in_the_ball_and_among_the_images"] = partial(
            it_stays_in_the_ball_and_among_the_images, own, norm
        )
        found |= {f"{name}-{norm}-{momentum:g}": check for name, check in checks.items()}
    return found


# Evaluation attacks: a network of five classes, and a batch of images that some attacks fool.

CLASSES = 5


def network(classes: int = CLASSES) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, classes)).eval()
        with torch.no_grad():
            net.get_parameter("4.weight").mul_(8)
    return net


def case(
    norm: str = "linf",
    *,
    number: int = 8,
    strength: float = 0.04,
    classes: int = CLASSES,
    model: nn.Module | None = None,
) -> Case:
    """Images with the labels that the model gives them; the radius fools some of them and not others.

    The surrogate is the model itself, or the network where another model is given.
    """
    images = torch.rand(number, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images[0], images[1] = 0, 1  # corners of the cube of pixels
    net = network(classes)
    model = net if model is None else model
    eps = strength if norm == "linf" else strength * 192**0.5 / 2
    return Case(model, images, model(images).argmax(1), torch.arange(number) + 40, eps, classes, norm, 0, net)  # type: ignore[arg-type]


def part(whole: Case, where: Tensor) -> Case:
    return replace(whole, images=whole.images[where], labels=whole.labels[where], index=whole.index[where])


def same(found: Outcome, expected: Outcome, where: Tensor) -> None:
    torch.testing.assert_close(found.adversarial, expected.adversarial[where])
    torch.testing.assert_close(found.worst.margin, expected.worst.margin[where], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.worst.prediction, expected.worst.prediction[where])


def _counted(calls: list[Tensor], given: Case, images: Tensor) -> Tensor:
    calls.append(images)
    return given.logits(images)


def it_says_what_it_is(parameters: EvalAttackParameters, norm: str) -> None:
    row = type(parameters)
    assert row.summary
    assert row.citation
    assert row.min_classes >= 2
    assert all(field.description for key, field in row.model_fields.items() if key != "name")
    forward, backward = parameters.passes(CLASSES, norm=norm)
    assert forward >= 0
    assert backward >= 0


def its_images_stay_in_the_ball_and_among_images(parameters: EvalAttackParameters, norm: str) -> None:
    for strength in (0.04, 0.5):
        given = case(norm, strength=strength)
        found = run_attack(given, parameters).adversarial
        assert (length(found - given.images, norm) <= given.eps * (1 + 1e-6) + 2**-22).all()
        assert found.min() >= 0
        assert found.max() <= 1
        assert not found.requires_grad


def a_radius_of_0_is_the_identity_and_costs_one_forward(parameters: EvalAttackParameters, norm: str) -> None:
    given = replace(case(norm), eps=0.0)
    calls: list[Tensor] = []
    found = run_attack(replace(given, logits=lambda x: _counted(calls, given, x)), parameters)
    assert len(calls) == 1
    assert torch.equal(found.adversarial, given.images)
    assert not found.worst.fooled.any()
    assert torch.equal(found.worst.margin, predict(given.clean(), given.labels)[1])


def the_verdict_is_that_of_the_worst_image_that_was_looked_at(parameters: EvalAttackParameters, norm: str) -> None:
    given = case(norm, number=32)
    found = run_attack(given, parameters)
    prediction, margin = predict(given.logits(found.adversarial), given.labels)
    final = prediction != given.labels
    assert (found.worst.fooled >= final).all()
    assert (found.worst.fooled | (found.worst.margin <= margin + 1e-4)).all()  # who is fooled is done: the first counts


def the_same_keys_give_the_same_verdicts_in_any_order_and_any_batch(
    parameters: EvalAttackParameters, norm: str
) -> None:
    given = case(norm)
    whole = run_attack(given, parameters)
    assert torch.equal(run_attack(given, parameters).adversarial, whole.adversarial)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    same(run_attack(part(given, order), parameters), whole, order)
    for where in (torch.arange(2, 5), whole.worst.fooled.nonzero().squeeze(1), torch.tensor([6])):
        same(run_attack(part(given, where), parameters), whole, where)


def gradients_mode_and_random_state_are_left_alone(parameters: EvalAttackParameters, norm: str) -> None:
    model = network().train()
    list(model.children())[3].eval()
    given, state = case(norm, model=model), torch.random.get_rng_state()
    before = given.images.clone()
    with torch.no_grad():  # also where the caller has gradients off
        run_attack(given, parameters)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert not list(model.children())[3].training
    assert given.images.grad is None
    assert not given.images.requires_grad
    assert torch.equal(given.images, before)
    assert torch.equal(torch.random.get_rng_state(), state)


OF_EVALUATION = (
    it_says_what_it_is,
    its_images_stay_in_the_ball_and_among_images,
    a_radius_of_0_is_the_identity_and_costs_one_forward,
    the_verdict_is_that_of_the_worst_image_that_was_looked_at,
    the_same_keys_give_the_same_verdicts_in_any_order_and_any_batch,
    gradients_mode_and_random_state_are_left_alone,
)


def attack_contract(parameters: EvalAttackParameters) -> dict[str, Callable[[], None]]:
    """The checks by name, in every norm that the attack is defined in; give it settings that a test can wait for."""
    keyed = type(parameters).keyed
    checks = [check for check in OF_EVALUATION if keyed or "same_keys" not in check.__name__]
    return {
        f"{check.__name__}-{norm}": partial(check, parameters, norm) for norm in parameters.norms for check in checks
    }
