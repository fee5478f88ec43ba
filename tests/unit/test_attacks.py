"""Fractions, the counter-based noise, and PGD step by step."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from trainers.attacks import noise, pgd, pgd_any
from trainers.config import AttackConfig
from trainers.units import OfEps, eps_label, parse_fraction


def test_a_fraction_is_its_quotient_and_a_number_is_itself() -> None:
    assert parse_fraction("4/255") == 4 / 255
    assert parse_fraction("0.5") == 0.5
    assert parse_fraction(0.25) == 0.25


@pytest.mark.parametrize("text", ["4/0", "four", "1/2/3", "", "2*2", "__import__('os')"])
def test_what_is_no_fraction_is_refused_by_a_message_that_shows_it(text: str) -> None:
    with pytest.raises(ValidationError, match="fraction such as 4/255"):
        AttackConfig(eps=text)


def test_nothing_infinite_or_negative_is_a_radius() -> None:
    for value in ("nan", "inf", -0.1, 2):
        with pytest.raises(ValidationError):
            AttackConfig(eps=value)


def test_the_default_attack_is_the_papers() -> None:
    attack = AttackConfig()
    assert (attack.eps, attack.resolved_step_size(), attack.steps) == (1 / 255, 1 / 255, 2)
    assert AttackConfig(eps="4/255", step_size=OfEps(of_eps=0.25)).resolved_step_size() == pytest.approx(1 / 255)
    assert AttackConfig(eps="4/255", step_size="1/255").resolved_step_size() == 1 / 255


def test_a_radius_has_a_name_in_grey_levels() -> None:
    assert [eps_label(eps) for eps in (1 / 255, 0.5 / 255, 8 / 255, 0.0)] == ["1/255", "0.5/255", "8/255", "0/255"]


def splitmix(state: int) -> int:
    """SplitMix64's finaliser in Python integers."""
    mask = (1 << 64) - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)


def test_noise_is_the_hash_that_it_says_it_is() -> None:
    mask, golden = (1 << 64) - 1, 0x9E3779B97F4A7C15
    key = 0
    for part in (7, 3, 1):
        key = splitmix((key + part * golden + golden) & mask)
    for index in (0, 5, 123_456_789):
        own = splitmix(splitmix((index * golden) & mask) ^ key)
        expected = [(2 * (splitmix((own + c * golden) & mask) >> 41) + 1) / 2**23 - 1 for c in range(1, 5)]
        assert noise(7, 3, 1, torch.tensor([index]), (2, 2)).flatten().tolist() == expected


def test_noise_is_uniform_symmetric_and_inside_the_open_interval() -> None:
    values = noise(0, 0, 0, torch.arange(200), (3, 16, 16)).double()
    n = values.numel()
    assert values.abs().max() < 1
    assert abs(values.mean()) < 4 * (1 / 3 / n) ** 0.5
    assert abs(values.square().mean() - 1 / 3) < 4 * (4 / 45 / n) ** 0.5
    counts = torch.histc(values, 20, -1, 1)
    assert ((counts - n / 20).square() / (n / 20)).sum() < 60  # chi-squared, 19 degrees of freedom


def test_noise_of_different_samples_and_keys_is_uncorrelated() -> None:
    keys = [(0, 0, 0, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1), (1, 1, 0, 0), (0, 1, 1, 0)]
    rows = [noise(s, e, r, torch.tensor([i]), (4096,)) for s, e, r, i in keys]
    correlation = torch.corrcoef(torch.cat(rows)) - torch.eye(len(rows))
    assert correlation.abs().max() < 5 / 4096**0.5


def test_a_samples_noise_is_the_same_in_any_batch_and_leaves_the_global_state_alone() -> None:
    state = torch.random.get_rng_state()
    together = noise(1, 2, 3, torch.tensor([9, 4, 7]), (3, 4))
    assert torch.equal(together[1:2], noise(1, 2, 3, torch.tensor([4]), (3, 4)))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_two_steps_of_pgd_are_the_two_steps_done_by_hand() -> None:
    images = torch.tensor([[0.5, 0.02, 0.99]])
    # loss = x0^2 - x1 + x2: the signs are +, -, +; start at 0.5 of the radius to either side
    adversarial = pgd(
        lambda x: x[:, 0] ** 2 - x[:, 1] + x[:, 2], images, eps=0.1, step_size=0.06, steps=2,
        start=torch.tensor([[-0.5, 0.5, 0.0]]),
    )  # fmt: skip
    # 0.45 -> 0.51 -> 0.57;  0.07 -> 0.01 -> 0 (the image's edge);  0.99 -> 1 (the other edge)
    torch.testing.assert_close(adversarial, torch.tensor([[0.57, 0.0, 1.0]]))


def test_with_a_sum_of_losses_the_batch_size_does_not_change_a_perturbation() -> None:
    weight = torch.linspace(-1, 1, 24).view(2, 12)

    def loss(x: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(x @ weight.T) ** 2).sum(1) * 1e-30  # so small that a mean over 64 would matter in fp16

    images, start = torch.rand(64, 12, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 12)
    settings = {"eps": 0.1, "step_size": 0.05, "steps": 3}
    whole = pgd(loss, images, start=start, **settings)
    single = torch.cat([pgd(loss, images[i : i + 1], start=start[:1], **settings) for i in range(64)])
    torch.testing.assert_close(whole, single)
    assert (whole - images).abs().amax() > 0.09


def test_an_image_is_fooled_if_only_the_start_fools_it() -> None:
    # One pixel; the label is right wherever x < 0.55, and the gradient leads the attack back below it.
    def logits(x: torch.Tensor) -> torch.Tensor:
        wrong = (x - 0.55).sign() + (0.5 - x) - (0.5 - x).detach()
        return torch.cat([torch.zeros_like(x), wrong], dim=1)

    labels = torch.tensor([0])
    settings = {"eps": 0.1, "step_size": 0.1, "steps": 2}
    result = pgd_any(logits, torch.tensor([[0.5]]), labels, start=torch.tensor([[1.0]]), **settings)
    assert result.fooled.tolist() == [True]
    assert result.prediction.tolist() == [1]
    assert result.margin.item() == -1
    calm = pgd_any(logits, torch.tensor([[0.5]]), labels, start=torch.tensor([[-1.0]]), **settings)
    assert calm.fooled.tolist() == [False]
