"""Fractions, the counter-based noise, PGD step by step, restarts, and the attack of a model in training."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from tests.support.small import small_clip
from trainers.attacks import Case, pgd, restarted, run_attack
from trainers.draws import noise
from trainers.model.robust import RobustCLIP
from trainers.objectives import Batch, Context
from trainers.objectives.base import perturbed
from trainers.schema.attacks import PGD
from trainers.schema.training import AttackConfig
from trainers.schema.units import OfEps, eps_label, parse_fraction


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
    assert (attack.norm, attack.restarts, attack.momentum) == ("linf", 1, 0)
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
        return (torch.tanh(x @ weight.T) ** 2).sum(1) * 1e-43  # so small that a mean over 64 images would be 0

    images, start = torch.rand(64, 12, generator=torch.Generator().manual_seed(0)), torch.zeros(64, 12)
    settings = {"eps": 0.1, "step_size": 0.05, "steps": 3}
    whole = pgd(loss, images, start=start, **settings)
    single = torch.cat([pgd(loss, images[i : i + 1], start=start[:1], **settings) for i in range(64)])
    torch.testing.assert_close(whole, single)
    assert (whole - images).abs().amax() > 0.09


def test_an_image_is_fooled_if_only_the_start_fools_it() -> None:
    # The label is right wherever the mean is below 0.52, and the gradient leads the attack back below it.
    def logits(images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((1, 2, 3))[:, None]
        seen.append(mean.detach() > 0.52)
        wrong = (mean.detach() - 0.52).sign() + (0.5 - mean) - (0.5 - mean).detach()
        return torch.cat([torch.zeros_like(mean), wrong], dim=1)

    seen: list[torch.Tensor] = []
    images, labels, index = torch.full((64, 3, 2, 2), 0.5), torch.zeros(64, dtype=torch.int64), torch.arange(64)
    case = Case(logits, images, labels, index, eps=0.1, num_classes=2)
    found = run_attack(case, PGD(steps=2, step_size=0.1)).worst
    start = seen[0].squeeze(1)
    assert start.any()
    assert not start.all()
    assert not torch.stack(seen[1:]).any(), "later iterates fool nobody"
    assert found.fooled.tolist() == start.tolist()
    assert found.prediction.tolist() == start.long().tolist()
    assert found.margin[start].tolist() == [-1] * int(start.sum())


def curved(x: Tensor) -> Tensor:
    """A loss [B] with gradients of every size and sign, and none at all for some pixels."""
    weight = torch.linspace(-2, 3, 27 * 4, dtype=x.dtype).view(4, 27)
    hidden = x.flatten(1) @ weight.T
    return hidden.sin().sum(1) + (x.flatten(1)[:, :5] - 0.5).relu().square().sum(1) * 3


def partly_flat(x: Tensor) -> Tensor:
    """As `curved`, with gradients that are exactly 0 in different places at different steps."""
    return curved(x * (x > 0.4)) + (x - 0.6).relu().flatten(1).sum(1)


def points(number: int = 6, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(number, 3, 3, 3, generator=torch.Generator().manual_seed(3)).to(dtype)


@pytest.mark.parametrize("loss", [curved, partly_flat])
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_linf_is_a_plain_loop_to_the_last_bit(loss: Callable[[Tensor], Tensor], momentum: float) -> None:
    images, start = points(), noise(1, 2, 0, torch.arange(6), (3, 3, 3))
    eps, alpha = 0.1, 0.03
    for steps in range(6):
        x = (images + eps * start).clamp((images - eps).clamp(0, 1), (images + eps).clamp(0, 1))
        velocity = torch.zeros_like(x)
        for _ in range(steps):
            x = x.detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(x).sum(), x)
            velocity = (momentum * velocity + gradient.sign()).sign()
            x = (x + alpha * velocity).clamp((images - eps).clamp(0, 1), (images + eps).clamp(0, 1))
        found = pgd(loss, images, eps=eps, step_size=alpha, steps=steps, start=start, momentum=momentum)
        assert torch.equal(found, x.detach())


def test_momentum_in_linf_only_matters_where_a_gradient_is_0() -> None:
    images, start = points(), noise(1, 2, 0, torch.arange(6), (3, 3, 3))

    def run(loss: Callable[[Tensor], Tensor], momentum: float) -> Tensor:
        return pgd(loss, images, eps=0.1, step_size=0.03, steps=5, start=start, momentum=momentum)

    assert torch.equal(run(curved, 0.9), run(curved, 0))
    assert not torch.equal(run(partly_flat, 0.9), run(partly_flat, 0))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_l2_is_a_plain_loop_over_images(momentum: float) -> None:
    images, start = points(dtype=torch.float64), noise(1, 2, 0, torch.arange(6), (3, 3, 3)).double()
    eps, alpha = 0.4, 0.2
    for steps in range(6):
        rows = []
        for image, first in zip(images, start, strict=True):
            x = (image + eps * first / 27**0.5).clamp(0, 1)
            velocity = torch.zeros_like(x)
            for _ in range(steps):
                x = x.detach().requires_grad_(True)
                (gradient,) = torch.autograd.grad(curved(x[None]).sum(), x)
                velocity = momentum * velocity + gradient / gradient.norm()
                velocity = velocity / velocity.norm()
                moved = x.detach() + alpha * velocity - image
                x = (image + moved * min(1.0, eps / float(moved.norm()))).clamp(0, 1)
            rows.append(x.detach())
        settings = {"eps": eps, "step_size": alpha, "steps": steps, "start": start, "momentum": momentum}
        found = pgd(curved, images, norm="l2", **settings)
        torch.testing.assert_close(found, torch.stack(rows), rtol=1e-12, atol=1e-12)


def test_the_l2_start_is_uniform_in_the_cube_inscribed_in_the_ball() -> None:
    images, start = torch.full((50, 3, 8, 8), 0.5), noise(0, 0, 0, torch.arange(50), (3, 8, 8))
    found = pgd(curved, images, eps=1.0, step_size=1.0, steps=0, start=start, norm="l2") - images
    torch.testing.assert_close(found, start / 192**0.5, rtol=1e-4, atol=1e-7)
    corner = pgd(curved, images, eps=1.0, step_size=1.0, steps=0, start=start.sign(), norm="l2") - images
    torch.testing.assert_close(corner.flatten(1).norm(dim=1), torch.ones(50))


@pytest.mark.parametrize("restarts", [1, 2, 5])
def test_of_several_restarts_each_image_keeps_the_result_of_greatest_loss(restarts: int) -> None:
    results = torch.rand(5, 6, 3, 3, 3, generator=torch.Generator().manual_seed(7))
    runs: list[int] = []
    forwards: list[int] = []

    def run(number: int) -> Tensor:
        runs.append(number)
        return results[number]

    def loss(x: Tensor) -> Tensor:
        forwards.append(len(x))
        assert not torch.is_grad_enabled()
        return coarse(x)

    def coarse(x: Tensor) -> Tensor:
        return (curved(x) / 2).round()  # of different images with equal losses, the first is kept

    found = restarted(run, loss, restarts)
    losses = torch.stack([coarse(result) for result in results[:restarts]])
    assert restarts < 5 or ((losses == losses.amax(0)).sum(0) > 1).any()
    best = losses.argmax(0)
    assert torch.equal(found, torch.stack([results[number, row] for row, number in enumerate(best)]))
    assert restarts == 1 or len(set(best.tolist())) > 1
    assert runs == list(range(restarts))
    assert len(forwards) == (0 if restarts == 1 else restarts)


def training(precision: str = "fp32") -> tuple[RobustCLIP, Batch, Context]:
    model = RobustCLIP(small_clip())
    model.precision = precision
    images = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    classes = torch.nn.functional.normalize(torch.randn(5, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    return model, Batch(images, torch.tensor([0, 1, 2, 3]), torch.tensor([4, 9, 2, 7])), Context(classes, 5, 6, 4)


@pytest.mark.parametrize(
    "attack",
    [
        AttackConfig(eps="4/255"),
        AttackConfig(eps="4/255", momentum=0.9, steps=3),
        AttackConfig(eps="4/255", restarts=3, step_size="1/255"),
        AttackConfig(norm="l2", eps=0.5, steps=3),
        AttackConfig(norm="l2", eps=0.5, momentum=0.9, restarts=2, steps=3),
    ],
    ids=["paper", "momentum", "restarts", "l2", "all"],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_training_attacks_with_everything_that_is_configured(attack: AttackConfig, precision: str) -> None:
    model, batch, context = training(precision)

    def loss(x: Tensor) -> Tensor:
        logits = model.logits(model.embed(x), context.class_embeddings, 20.0)
        return torch.nn.functional.cross_entropy(logits, batch.labels, reduction="none")

    factor = 128 if precision == "fp16" else 1
    found = perturbed(model, loss, batch, attack, context)
    runs = [
        pgd(
            lambda x: factor * loss(x),
            batch.images,
            eps=attack.eps,
            step_size=attack.resolved_step_size(),
            steps=attack.steps,
            start=noise(5, 6, restart, batch.index, (3, 16, 16)),
            norm=attack.norm,
            momentum=attack.momentum,
        )
        for restart in range(attack.restarts)
    ]
    with torch.no_grad():
        best = torch.stack([loss(run) for run in runs]).argmax(0)
    assert torch.equal(found, torch.stack([runs[number][row] for row, number in enumerate(best)]))


def test_in_fp16_a_small_gradient_still_moves_every_pixel() -> None:
    attack = AttackConfig(eps="4/255", steps=1)

    def moved(precision: str) -> float:
        """The fraction of pixels that the attack moves away from its start."""
        model, batch, context = training(precision)

        def loss(x: Tensor) -> Tensor:
            return 3e-6 * model.embed(x)[:, 0]

        found = perturbed(model, loss, batch, attack, context)
        start = batch.images + attack.eps * noise(5, 6, 0, batch.index, (3, 16, 16))
        return float((found != start.clamp(0, 1)).float().mean())

    assert moved("fp32") > 0.9
    assert moved("fp16") > 0.9
