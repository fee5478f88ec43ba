"""What every row of ATTACKS must do, whatever it is."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from trainers.attacks import ATTACKS, Attack, noise

every_attack = pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(27, 16), nn.Tanh(), nn.Dropout(0.5), nn.Linear(16, 1)).eval()


def images(number: int = 8) -> Tensor:
    return torch.rand(number, 3, 3, 3, generator=torch.Generator().manual_seed(1))


@every_attack
def test_on_a_linear_model_it_lowers_the_margin_by_eps_times_the_l1_norm(attack: Attack) -> None:
    weight, points = torch.tensor([[1.0, -2.0]]), torch.full((3, 2), 0.5)

    def margin(x: Tensor) -> Tensor:
        return (x @ weight.T).squeeze(1)

    start = noise(0, 0, 0, torch.arange(3), (2,))
    adversarial = attack(lambda x: -margin(x), points, eps=0.1, step_size=0.05, steps=10, start=start)
    torch.testing.assert_close(margin(points) - margin(adversarial), torch.full((3,), 0.1 * 3.0))


@every_attack
@pytest.mark.parametrize("steps", [0, 1, 5])
@pytest.mark.parametrize("eps", [1 / 255, 0.3])
def test_it_stays_in_the_ball_and_among_the_images(attack: Attack, steps: int, eps: float) -> None:
    points, model = images(), network()
    start = noise(0, 0, 0, torch.arange(8), (3, 3, 3))
    adversarial = attack(lambda x: model(x).squeeze(1), points, eps=eps, step_size=eps, steps=steps, start=start)
    assert (adversarial - points).abs().max() <= eps + 2**-24
    assert adversarial.min() >= 0
    assert adversarial.max() <= 1
    assert not adversarial.requires_grad


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
def test_the_same_noise_gives_the_same_images_in_any_order(attack: Attack) -> None:
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
