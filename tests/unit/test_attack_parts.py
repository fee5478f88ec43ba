"""Auto-PGD step by step, the schedule of Square, and the transforms of DI- and TI-FGSM, against plain code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.attacked import case, network
from trainers.attack_parameters import APGDCE, DIFGSM, MIFGSM, TIFGSM, Square
from trainers.attacks import Case, noise, predict, run_attack
from trainers.attacks.auto_pgd import checkpoints
from trainers.attacks.counter import STREAMS, uniform
from trainers.attacks.random_search import square_side
from trainers.attacks.transferable import _smooth, gaussian_kernel, shrink_and_pad


def test_progress_is_judged_where_the_paper_says() -> None:
    assert checkpoints(100) == (22, 41, 57, 70, 80, 87, 93, 99)
    assert checkpoints(10) == (3, 5, 6, 7, 8, 9, 10)
    assert checkpoints(1) == (1,)
    assert checkpoints(1000)[:2] == (220, 410)


def plain_apgd(
    model: Callable[[int, Tensor], Tensor],
    image: Tensor,
    label: int,
    start: Tensor,
    *,
    eps: float,
    steps: int,
    norm: str,
) -> list[Tensor]:
    """Algorithm 1 of Croce and Hein 2020 for one image [3, H, W]: every point that it visits.

    `model`: the number of the point and [1, 3, H, W] -> logits [1, K].
    """
    rho, alpha = 0.75, 0.75

    def loss(number: int, x: Tensor) -> tuple[float, Tensor]:
        x = x[None].clone().requires_grad_(True)
        value = F.cross_entropy(model(number, x), torch.tensor([label]))
        return value.item(), torch.autograd.grad(value, x)[0][0]

    def project(x: Tensor) -> Tensor:
        if norm == "linf":
            return torch.clamp(x, (image - eps).clamp(0, 1), (image + eps).clamp(0, 1))
        difference = x - image
        return (image + difference * min(1, eps / max(difference.norm().item(), 1e-12))).clamp(0, 1)

    def way(gradient: Tensor) -> Tensor:
        return gradient.sign() if norm == "linf" else gradient / gradient.norm()

    eta, points = 2 * eps, [start]
    values, gradients = [loss(0, start)[0]], [loss(0, start)[1]]
    best, best_at_checkpoint, halved_at_checkpoint, last = 0, values[0], False, 0
    x, f, g, before = start, values[0], gradients[0], start
    rises = 0
    for k in range(1, steps + 1):
        z = project(x + eta * way(g))
        new = project(z) if k == 1 else project(x + alpha * (z - x) + (1 - alpha) * (x - before))
        before, x = x, new
        value, gradient = loss(k, x)
        rises += value > f
        f, g = value, gradient
        points.append(x)
        values.append(value)
        gradients.append(gradient)
        if value > values[best]:
            best = k
        if k in checkpoints(steps):
            first = rises < rho * (k - last)
            second = not halved_at_checkpoint and values[best] == best_at_checkpoint
            halved_at_checkpoint = first or second
            if halved_at_checkpoint:
                eta, x, f, g = eta / 2, points[best], values[best], gradients[best]
            best_at_checkpoint, last, rises = values[best], k, 0
    return points


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_auto_pgd_visits_the_points_of_a_plain_loop_over_images(norm: str) -> None:
    given = case(norm, number=12, strength=0.02)
    draw = noise(0, STREAMS["start"], 0, given.index, (3, 8, 8))
    if norm == "l2":
        draw = draw / draw.flatten(1).norm(dim=1)[:, None, None, None]
    seen: list[Tensor] = []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return given.logits(x)

    found = run_attack(replace(given, logits=watched), APGDCE(steps=25))
    assert not found.worst.fooled.all()  # so it goes to the end
    assert len(seen) == 26
    for row in range(12):
        start = given.project(given.images + given.eps * draw)[row]
        label = int(given.labels[row])
        points = plain_apgd(
            lambda _, x: network()(x), given.images[row], label, start, eps=given.eps, steps=25, norm=norm
        )
        expected = torch.stack(points)
        torch.testing.assert_close(torch.stack(seen)[:, row], expected, rtol=0, atol=2e-5)
        least = predict(given.logits(expected), given.labels[row].expand(26))[1]
        fooled = (least < 0).nonzero()
        worst = least[fooled[0]].item() if len(fooled) else least.min().item()  # the first that fools, or the least
        assert found.worst.margin[row].item() == pytest.approx(worst, abs=1e-3)


def test_auto_pgd_halves_its_steps_by_the_papers_rules_whatever_the_losses_do() -> None:
    """Losses and gradients from a script: image i's k-th point has logit margin -script[i, k], wherever it is."""
    number, steps = 40, 50  # judged after 11, 21, 29, 35, 40, 44, 47, 50 steps
    generator = torch.Generator().manual_seed(5)
    drift = torch.linspace(-0.3, 0.3, number)[:, None]
    script = -20 + (drift + torch.randn(number, steps + 1, generator=generator) * 0.3).cumsum(1)
    script[0] = torch.cat([torch.arange(0, -12, -1), -9 + torch.arange(steps - 11) / 20]) - 20  # falls, halves; rises
    way = torch.randn(steps + 1, 3, 2, 2, generator=generator)
    images = torch.full((number, 3, 2, 2), 0.5)
    calls: list[Tensor] = []

    def scripted(rows: Tensor, k: int, x: Tensor) -> Tensor:
        rise = ((x - x.detach()) * way[k]).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(rise), rows + rise], dim=1)

    def model(x: Tensor) -> Tensor:
        calls.append(x.detach().clone())
        return scripted(script[:, len(calls) - 1], len(calls) - 1, x)

    given = Case(model, images, torch.zeros(number, dtype=torch.int64), torch.arange(number), 0.1, 2)
    run_attack(given, APGDCE(steps=steps))
    start = given.project(images + 0.1 * noise(0, STREAMS["start"], 0, given.index, (3, 2, 2)))
    for row in range(number):
        points = plain_apgd(
            lambda k, x, row=row: scripted(script[row : row + 1, k], k, x),
            images[row], 0, start[row], eps=0.1, steps=steps, norm="linf",
        )  # fmt: skip
        torch.testing.assert_close(torch.stack(calls)[:, row], torch.stack(points), rtol=0, atol=1e-6)


def test_squares_shrink_on_the_papers_schedule_rescaled_to_the_queries() -> None:
    sides = {n: square_side(n, Square(queries=10_000), 32, 32) for n in (1, 10, 11, 51, 201, 501, 1001, 2001, 8001)}
    expected = [0.8, 0.8, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125]
    assert list(sides.values())[:8] == [round(math.sqrt(p * 1024)) for p in expected]
    assert sides[8001] == round(math.sqrt(0.8 / 512 * 1024))
    assert square_side(6, Square(queries=5_000), 32, 32) == sides[11]
    assert square_side(9_999, Square(queries=10_000), 4, 4) == 1


def test_a_shrunk_and_padded_image_is_a_resize_and_a_pad() -> None:
    images = torch.rand(60, 3, 20, 20, generator=torch.Generator().manual_seed(0))
    draws = uniform(0, "diversity", 0, torch.arange(60), 4)
    found = shrink_and_pad(images, draws, rate=0.7, probability=0.5)
    sizes = set()
    for row in range(60):
        if draws[row, 0] >= 0.5:
            assert torch.equal(found[row], images[row])
            continue
        size = 14 + int(draws[row, 1] * 6)
        top, left = (int(draws[row, k] * (20 - size)) for k in (2, 3))
        shrunk = F.interpolate(images[row : row + 1], size=(size, size), mode="bilinear", align_corners=False)
        expected = F.pad(shrunk, (left, 20 - size - left, top, 20 - size - top))[0]
        torch.testing.assert_close(found[row], expected, rtol=0, atol=1e-5)
        sizes.add(size)
    assert sizes == {14, 15, 16, 17, 18, 19}


def test_the_kernel_is_a_normal_density_over_three_deviations_and_the_smoothing_a_convolution() -> None:
    kernel = gaussian_kernel(15, 3.0)
    assert kernel.sum().item() == pytest.approx(1, abs=1e-6)
    assert torch.equal(kernel, kernel.flip(0))
    assert (kernel[0] / kernel[7]).item() == pytest.approx(math.exp(-4.5), rel=1e-5)
    gradient = torch.randn(2, 3, 20, 18, generator=torch.Generator().manual_seed(0))
    expected = F.conv2d(gradient.flatten(0, 1)[:, None], torch.outer(kernel, kernel)[None, None], padding=7)
    torch.testing.assert_close(_smooth(gradient, kernel), expected.view_as(gradient), rtol=1e-4, atol=1e-5)


def test_mi_fgsm_is_a_plain_loop() -> None:
    given = case(number=6)
    x, velocity = given.images.clone(), torch.zeros_like(given.images)
    for _ in range(4):
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(F.cross_entropy(given.logits(x), given.labels, reduction="sum"), x)
        velocity = 0.5 * velocity + gradient / gradient.abs().mean((1, 2, 3), keepdim=True)
        x = (x + 0.01 * velocity.sign()).clamp(
            (given.images - given.eps).clamp(0, 1), (given.images + given.eps).clamp(0, 1)
        )
    found = run_attack(given, MIFGSM(steps=4, decay=0.5, step_size=0.01))
    torch.testing.assert_close(found.adversarial, x.detach())


def test_diversity_and_smoothing_change_the_perturbation_and_every_step_draws_anew() -> None:
    given = case(number=6)
    plain = run_attack(given, DIFGSM(steps=3, diversity_probability=0)).adversarial
    assert torch.equal(plain, run_attack(given, MIFGSM(steps=3, decay=0)).adversarial)
    diverse = run_attack(given, DIFGSM(steps=3, diversity_probability=1)).adversarial
    smooth = run_attack(given, TIFGSM(steps=3, diversity_probability=0, kernel_size=5)).adversarial
    assert (diverse != plain).flatten(1).any(1).all()
    assert (smooth != plain).flatten(1).any(1).all()
    one, two = (uniform(0, "diversity", step, given.index, 4) for step in (0, 1))
    assert (one != two).all()


def test_an_image_without_a_gradient_stays_where_it_is_and_spoils_no_other() -> None:
    given = case(number=6)
    flat = torch.tensor([1.0, 0, 1, 1, 1, 1])[:, None]
    for parameters in (MIFGSM(steps=3), TIFGSM(steps=3, kernel_size=3)):
        found = run_attack(replace(given, logits=lambda x: flat * network()(x)), parameters).adversarial
        assert torch.isfinite(found).all()
        assert torch.equal(found[1], given.images[1])
        assert (found != given.images).flatten(1).any(1)[flat[:, 0] > 0].all()
