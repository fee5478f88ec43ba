"""What every row of ATTACKS must do, whatever it is, in either norm, with and without momentum."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from trainers.attacks import ATTACKS, Attack
from trainers.draws import noise

VARIANTS = {
    f"{name} {norm} {momentum}": (partial(attack, norm=norm, momentum=momentum), norm)
    for name, attack in ATTACKS.items()
    for norm in ("linf", "l2")
    for momentum in (0.0, 0.9)
}
every_attack = pytest.mark.parametrize("attack", [attack for attack, _ in VARIANTS.values()], ids=VARIANTS)
every_norm = pytest.mark.parametrize(("attack", "norm"), VARIANTS.values(), ids=VARIANTS)


def length(difference: Tensor, norm: str) -> Tensor:
    """Of each image [B]."""
    flat = difference.double().flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt()


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1)).eval()


def images(number: int = 8) -> Tensor:
    return torch.rand(number, 3, 3, 3, generator=torch.Generator().manual_seed(1))


@every_norm
def test_on_a_linear_model_it_lowers_the_margin_by_eps_times_the_dual_norm(attack: Attack, norm: str) -> None:
    weight, points = torch.tensor([[1.0, -2.0]]), torch.full((3, 2), 0.5)

    def margin(x: Tensor) -> Tensor:
        return (x @ weight.T).squeeze(1)

    start = noise(0, 0, 0, torch.arange(3), (2,))
    adversarial = attack(lambda x: -margin(x), points, eps=0.1, step_size=0.05, steps=40, start=start)
    dual = 3.0 if norm == "linf" else 5.0**0.5
    torch.testing.assert_close(margin(points) - margin(adversarial), torch.full((3,), 0.1 * dual))


@every_norm
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("eps", [1 / 255, 0.3])
def test_it_stays_in_the_ball_and_among_the_images(attack: Attack, norm: str, steps: int, eps: float) -> None:
    points, model = images(), network()
    points[0], points[1] = 0, 1  # corners of the cube of pixels
    start = noise(0, 0, 0, torch.arange(8), (3, 3, 3))
    adversarial = attack(lambda x: model(x).squeeze(1), points, eps=eps, step_size=eps, steps=steps, start=start)
    assert (length(adversarial - points, norm) <= eps + 2**-22).all()
    assert (length(adversarial - points, norm) > 0.01 * eps).all()
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad


@every_attack
def test_an_image_with_a_gradient_of_0_stays_at_its_start_and_spoils_no_other(attack: Attack) -> None:
    model, points, start = network(), images(), noise(0, 0, 0, torch.arange(8), (3, 3, 3))
    flat = torch.tensor([1.0, 0, 1, 1, 1, 1, 1, 1])
    settings = {"eps": 0.1, "step_size": 0.05, "steps": 3, "start": start}
    adversarial = attack(lambda x: flat * model(x).squeeze(1), points, **settings)
    untouched = attack(lambda x: 0 * model(x).squeeze(1), points, **settings)
    assert torch.isfinite(adversarial).all()
    assert torch.equal(adversarial[1], untouched[1])
    assert torch.equal(untouched, attack(lambda x: model(x).squeeze(1), points, **{**settings, "steps": 0}))
    assert (adversarial[flat > 0] != untouched[flat > 0]).any(dim=(1, 2, 3)).all()


@every_attack
@pytest.mark.parametrize("size", [1e-30, 1e30])
def test_the_size_of_the_loss_does_not_matter(attack: Attack, size: float) -> None:
    model, points, start = network(), images(), noise(0, 0, 0, torch.arange(8), (3, 3, 3))
    settings = {"eps": 0.1, "step_size": 0.05, "steps": 3, "start": start}
    plain = attack(lambda x: model(x).squeeze(1), points, **settings)
    scaled = attack(lambda x: size * model(x).squeeze(1), points, **settings)
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-4)


@every_attack
def test_a_radius_of_zero_is_the_identity(attack: Attack) -> None:
    start = torch.ones(8, 3, 3, 3)
    adversarial = attack(lambda x: network()(x).squeeze(1), images(), eps=0.0, step_size=0.1, steps=3, start=start)
    assert torch.equal(adversarial, images())


@every_attack
def test_it_does_not_lower_the_loss_below_that_of_the_start(attack: Attack) -> None:
    model, points, start = network(), images(), torch.zeros(8, 3, 3, 3)
    adversarial = attack(lambda x: model(x).squeeze(1), points, eps=0.05, step_size=0.01, steps=5, start=start)
    assert (model(adversarial) > model(points)).all()


@every_attack
def test_the_same_noise_gives_the_same_images_in_any_order_and_any_batch(attack: Attack) -> None:
    model, points, index = network(), images(), torch.arange(8)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])

    def run(rows: Tensor) -> Tensor:
        start = noise(5, 0, 0, index[rows], (3, 3, 3))
        return attack(lambda x: model(x).squeeze(1), points[rows], eps=0.1, step_size=0.05, steps=3, start=start)

    whole = run(index)
    assert torch.equal(run(index), whole)
    torch.testing.assert_close(run(order), whole[order])
    torch.testing.assert_close(run(index[2:5]), whole[2:5])


@every_attack
def test_it_leaves_gradients_mode_and_random_state_alone(attack: Attack) -> None:
    model, points, state = network().train(), images(), torch.random.get_rng_state()
    model[3].eval()
    with torch.no_grad():  # also where the caller has gradients off
        attack(lambda x: model(x).squeeze(1), points, eps=0.1, step_size=0.05, steps=2, start=torch.zeros(8, 3, 3, 3))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert not model[3].training
    assert points.grad is None
    assert not points.requires_grad
    assert torch.equal(torch.random.get_rng_state(), state)
