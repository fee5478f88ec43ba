"""TeCoA by hand, and against its equation in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from tests.support.equations import NO_ATTACK, Setting, assert_equals, colours, log_p
from trainers.objectives.tecoa import TeCoA
from trainers.schema.training import AttackConfig
from trainers.schema.units import OfModel

# Whatever the start, one step of twice the radius ends in a corner of the ball: towards the other classes.
ONE_LARGE_STEP = AttackConfig(eps=0.1, step_size=0.2, steps=1)


def test_two_images_and_three_classes_give_the_loss_computed_by_hand() -> None:
    here = colours()
    losses = TeCoA(logit_scale=2).loss(here.model, here.batch, NO_ATTACK, context=here.context)
    expected = math.log(math.exp(1.6) + math.exp(1.2) + 1) - 1.6  # the same for both, mirrored
    assert losses.total.item() == pytest.approx(expected, rel=1e-6)
    assert losses.parts["label"].item() == pytest.approx(expected, rel=1e-6)


def test_the_attacked_colours_are_those_found_by_hand() -> None:
    here = colours()
    losses = TeCoA(logit_scale=2).loss(here.model, here.batch, ONE_LARGE_STEP, context=here.context)
    length = math.sqrt(0.7**2 + 0.7**2 + 0.1**2)  # both become (0.7, 0.7, 0.1)
    high, low = 2 * 0.7 / length, 2 * 0.1 / length
    expected = math.log(2 * math.exp(high) + math.exp(low)) - high
    assert losses.total.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("tower", ["vit", "resnet"])
@pytest.mark.parametrize("scale", [OfModel(of_model=1), OfModel(of_model=0.5), 30])
def test_loss_and_gradient_are_those_of_the_equation(scale: OfModel | float, tower: str, dtype: torch.dtype) -> None:
    def label(here: Setting, images: Tensor) -> Tensor:
        s = scale.of_model * here.model.logit_scale if isinstance(scale, OfModel) else scale
        return -here.of_label(log_p(s * here.cosines(here.model, images)))

    def loss(here: Setting, attacked: Tensor) -> Tensor:
        return here.mean(label(here, attacked))

    assert_equals(TeCoA(logit_scale=scale), label, loss, tower=tower, dtype=dtype)


def test_the_default_scale_is_the_models_own() -> None:
    assert TeCoA().resolved_logit_scale(colours().model) == pytest.approx(10)
    assert TeCoA(logit_scale=30).resolved_logit_scale(colours().model) == 30
