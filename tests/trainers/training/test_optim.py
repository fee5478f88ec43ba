"""The learning-rate schedule and the optimizers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from trainers.schema.training import OptimizerConfig, Steps
from trainers.training.update import build_optimizer, learning_rate


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


def test_the_official_agft_schedule_is_timms_with_a_first_update_of_rate_zero() -> None:
    def rate(step: int) -> float:
        return learning_rate(step, 50_050, 4e-4, Steps(steps=1000), official="timm")

    assert rate(0) == 0
    assert rate(500) == pytest.approx(2e-4)
    assert rate(1000) / 4e-4 == pytest.approx(0.99901, abs=1e-5)
    assert rate(25_025) == pytest.approx(2e-4)
    assert 0 < rate(50_049) < 1e-11


def test_the_official_tecoa_and_fare_schedule_is_open_clips() -> None:
    rates = [learning_rate(step, 20, 1.0, Steps(steps=4), official="open_clip") for step in range(20)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[12] == pytest.approx(0.5)


def test_a_warmup_in_steps_is_the_same_fraction() -> None:
    assert [learning_rate(i, 50, 1.0, Steps(steps=10)) for i in range(50)] == [
        learning_rate(i, 50, 1.0, 0.2) for i in range(50)
    ]


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
