"""What every row of ATTACKS must do, whatever it is, in either norm, with and without momentum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from trainers.attacks import ATTACKS, Attack
from trainers.draws import noise
from trainers.testing.attacks import training_attack_contract

VARIANTS = {
    f"{name} {norm} {momentum}": (partial(attack, norm=norm, momentum=momentum), norm)
    for name, attack in ATTACKS.items()
    for norm in ("linf", "l2")
    for momentum in (0.0, 0.9)
}
every_norm = pytest.mark.parametrize(("attack", "norm"), VARIANTS.values(), ids=VARIANTS)
CHECKS = {
    f"{name} {what}": check for name, row in ATTACKS.items() for what, check in training_attack_contract(row).items()
}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_training_attack_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


@every_norm
def test_on_a_linear_model_it_lowers_the_margin_by_eps_times_the_dual_norm(attack: Attack, norm: str) -> None:
    weight, points = torch.tensor([[1.0, -2.0]]), torch.full((3, 2), 0.5)

    def margin(x: Tensor) -> Tensor:
        return (x @ weight.T).squeeze(1)

    start = noise(0, 0, 0, torch.arange(3), (2,))
    adversarial = attack(lambda x: -margin(x), points, eps=0.1, step_size=0.05, steps=40, start=start)
    dual = 3.0 if norm == "linf" else 5.0**0.5
    torch.testing.assert_close(margin(points) - margin(adversarial), torch.full((3,), 0.1 * dual))
