"""The learning-rate schedule and the optimizers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainers.config import OptimizerConfig
from trainers.optim import build_optimizer, learning_rate


def test_the_rate_rises_linearly_then_falls_as_half_a_cosine() -> None:
    rates = [learning_rate(step, 20, 1.0, 0.2) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[12] == pytest.approx(0.5)  # half-way through the cosine
    assert rates[19] == pytest.approx((1 + math.cos(math.pi * 15 / 16)) / 2)
    assert rates[4:] == sorted(rates[4:], reverse=True)


@pytest.mark.parametrize("total", [1, 2, 3, 50, 1001])
@pytest.mark.parametrize("warmup", [0.0, 0.02, 0.5, 0.999])
def test_no_update_is_wasted_on_a_rate_of_zero_and_none_exceeds_the_peak(total: int, warmup: float) -> None:
    rates = [learning_rate(step, total, 3e-4, warmup) for step in range(total)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(3e-4)


def test_a_step_outside_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"step must be in \[0, 10\)"):
        learning_rate(10, 10, 1.0, 0.0)


def test_one_step_of_sgd_with_momentum_is_done_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([1.0]))
    optimizer = build_optimizer(OptimizerConfig(lr=0.1, momentum=0.5, weight_decay=0.2), [parameter])
    for _ in range(2):
        parameter.grad = torch.tensor([2.0])
        optimizer.step()
    # v1 = 2 + 0.2, x1 = 1 - 0.22;  v2 = 0.5 v1 + (2 + 0.2 x1), x2 = x1 - 0.1 v2
    assert parameter.item() == pytest.approx(0.78 - 0.1 * (1.1 + 2 + 0.156))


def test_adamw_takes_its_betas_from_the_momentum_and_the_official_code() -> None:
    frozen, free = nn.Parameter(torch.zeros(1), requires_grad=False), nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer(OptimizerConfig(name="adamw", lr=1e-3, momentum=0.8, weight_decay=0.1), [frozen, free])
    (group,) = optimizer.param_groups
    assert group["betas"] == (0.8, 0.95)
    assert group["weight_decay"] == 0.1
    assert group["params"] == [free]
