"""MI-, DI- and TI-FGSM: their transforms, their momentum and their draws, against plain code."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.attacked import case, network
from trainers.attacks import run_attack
from trainers.attacks.transferable import _smooth, gaussian_kernel, shrink_and_pad
from trainers.draws import uniform
from trainers.schema.attacks import DIFGSM, MIFGSM, TIFGSM


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


@pytest.mark.parametrize("attack", [DIFGSM, TIFGSM])
def test_the_model_is_shown_images_shrunk_by_draws_keyed_by_seed_and_step_and_at_last_the_image_itself(
    attack: type[DIFGSM | TIFGSM],
) -> None:
    given, seen = replace(case(number=6, strength=1e-5), seed=3), []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return given.logits(x)

    found = run_attack(replace(given, logits=watched), attack(steps=2, resize_rate=0.5, diversity_probability=0.9))
    for step in (0, 1):  # the radius is nearly 0: the iterates are the images
        draws = uniform(3, "diversity", step, given.index, 4)
        expected = shrink_and_pad(given.images, draws, rate=0.5, probability=0.9)
        assert (expected != given.images).flatten(1).any(1).sum() >= 4
        torch.testing.assert_close(seen[step], expected, rtol=0, atol=2e-5)
    assert torch.equal(seen[2], found.adversarial)


def test_an_image_without_a_gradient_stays_where_it_is_and_spoils_no_other() -> None:
    given = case(number=6)
    flat = torch.tensor([1.0, 0, 1, 1, 1, 1])[:, None]
    for parameters in (MIFGSM(steps=3), TIFGSM(steps=3, kernel_size=3)):
        found = run_attack(replace(given, logits=lambda x: flat * network()(x)), parameters).adversarial
        assert torch.isfinite(found).all()
        assert torch.equal(found[1], given.images[1])
        assert (found != given.images).flatten(1).any(1)[flat[:, 0] > 0].all()
