"""Weights between a CLIP and its robust fine-tuning: the ends exact, the middle the straight line."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from tests.support.official import toy_architectures, toy_clip
from tests.support.small import small_clip
from trainers.errors import UserError
from trainers.model.build import describe
from trainers.model.weights import check_pair, interpolate, model_hash


@pytest.fixture(autouse=True, scope="module")
def architectures(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with toy_architectures(tmp_path_factory.mktemp("configs")):
        yield


def fine_tuned(base: nn.Module, *, seed: int = 3, amount: float = 0.1) -> nn.Module:
    """The base with another image encoder; its first layer is left alone."""
    robust, generator = copy.deepcopy(base), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in robust.visual.named_parameters():
            if name != "conv1.weight":
                value += amount * torch.randn(value.shape, generator=generator)
    return robust


def same_bits(one: nn.Module, other: nn.Module) -> bool:
    """Also minus zeros are told from zeros."""
    return model_hash(one) == model_hash(other)


@pytest.mark.parametrize("arch", ["toy-vit-quickgelu", "toy-resnet-quickgelu"])
def test_the_ends_are_the_two_models_bit_for_bit(arch: str) -> None:
    base = toy_clip(arch)
    robust = fine_tuned(base)
    with torch.no_grad():
        next(base.visual.parameters()).view(-1)[0] = -0.0  # (1 - 0) * -0.0 + 0 * x would be +0.0
    assert same_bits(interpolate(base, robust, 0), base)
    assert same_bits(interpolate(base, robust, 1), robust)
    assert not same_bits(base, robust)


@pytest.mark.parametrize("alpha", [0.1, 0.25, 0.5, 0.9])
def test_between_them_every_weight_of_the_encoder_is_on_the_line_and_nothing_else_moves(alpha: float) -> None:
    base = small_clip()
    robust = fine_tuned(base)
    found, one, other = (m.state_dict() for m in (interpolate(base, robust, alpha), base, robust))
    for name, value in found.items():
        assert value.dtype == torch.float32
        exact = (1 - alpha) * one[name].double() + alpha * other[name].double()
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=1e-7)
        if name.startswith("visual."):
            assert name == "visual.conv1.weight" or not torch.equal(value, one[name])
        else:
            assert torch.equal(value, one[name])
    assert torch.equal(found["visual.conv1.weight"], one["visual.conv1.weight"])  # left alone: bit for bit the same


def test_a_resnets_counters_are_taken_and_its_statistics_mixed() -> None:
    base, robust = toy_clip("toy-resnet-quickgelu"), toy_clip("toy-resnet-quickgelu", seed=1)
    robust.visual.bn1.num_batches_tracked.fill_(9)
    robust.visual.bn1.running_mean.fill_(4.0)
    mixed = interpolate(base, robust, 0.25)
    assert mixed.visual.bn1.num_batches_tracked.item() == 9
    assert mixed.visual.bn1.running_mean.unique().tolist() == [1.0]


def test_the_two_models_are_left_as_they_were() -> None:
    base, robust = small_clip(), small_clip(1)
    before = model_hash(base), model_hash(robust)
    mixed = interpolate(base, robust, 0.5)
    with torch.no_grad():
        for value in mixed.parameters():
            value.zero_()
    assert (model_hash(base), model_hash(robust)) == before


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_only_shares_between_0_and_1_exist(alpha: float) -> None:
    with pytest.raises(UserError, match="must be between 0"):
        interpolate(small_clip(), small_clip(), alpha)


def test_models_that_are_not_before_and_after_one_fine_tuning_are_refused() -> None:
    base = toy_clip("toy-vit-quickgelu")
    check_pair(base, fine_tuned(base))
    with pytest.raises(UserError, match=r"than the base toy-vit-quickgelu: vision_cfg\.layers 3"):
        check_pair(base, toy_clip("toy-vit-deep-quickgelu"))
    with pytest.raises(UserError, match="quick_gelu False, not True"):
        check_pair(base, toy_clip("toy-vit"))
    with pytest.raises(UserError, match=r"the text sides differ in \d+ tensors \(.*, \.\.\.\).*not the CLIP"):
        check_pair(base, toy_clip("toy-vit-quickgelu", seed=1))
    other = fine_tuned(base)
    describe(other).preprocess["mean"] = [0.5, 0.5, 0.5]
    with pytest.raises(UserError, match=r"normalised with mean \[0\.5"):
        check_pair(base, other)


def test_a_models_hash_is_of_its_tensors_not_of_a_file() -> None:
    assert model_hash(small_clip()) == model_hash(small_clip())
    changed = small_clip()
    with torch.no_grad():
        changed.visual.proj[0, 0] += 1e-6
    assert model_hash(changed) != model_hash(small_clip())
