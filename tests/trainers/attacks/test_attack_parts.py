"""Auto-PGD step by step, and the schedule of Square, against plain code."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.support.attacked import case, network
from trainers.attacks import Case, predict, run_attack
from trainers.attacks.auto_pgd import checkpoints
from trainers.attacks.random_search import square_side
from trainers.draws import STREAMS, noise, uniform
from trainers.schema.attacks import APGDCE, APGDT, Square


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
    rho: float = 0.75,
) -> list[Tensor]:
    """Algorithm 1 of Croce and Hein 2020 for one image [3, H, W]: every point that it visits.

    `model`: the number of the point and [1, 3, H, W] -> logits [1, K].
    """
    alpha = 0.75

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


@pytest.mark.parametrize("rho", [0.75, 0.4])
def test_auto_pgd_halves_its_steps_by_the_papers_rules_whatever_the_losses_do(rho: float) -> None:
    """Losses and gradients from a script: image i's k-th point has logit margin -script[i, k], wherever it is.

    Margins are small enough for their cross-entropies to differ in fp32.
    """
    number, steps = 40, 50  # judged after 11, 21, 29, 35, 40, 44, 47, 50 steps
    generator = torch.Generator().manual_seed(5)
    drift = torch.linspace(-0.1, 0.1, number)[:, None]
    script = (-5 + (drift + torch.randn(number, steps + 1, generator=generator) * 0.3).cumsum(1)).clamp(-9, -0.5)
    script[0] = torch.cat([torch.arange(12) / -10, -0.9 + torch.arange(steps - 11) / 200]) - 3  # falls; rises, not to 0
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
    run_attack(given, APGDCE(steps=steps, rho=rho))
    start = given.project(images + 0.1 * noise(0, STREAMS["start"], 0, given.index, (3, 2, 2)))
    for row in range(number):
        points = plain_apgd(
            lambda k, x, row=row: scripted(script[row : row + 1, k], k, x),
            images[row], 0, start[row], eps=0.1, steps=steps, norm="linf", rho=rho,
        )  # fmt: skip
        torch.testing.assert_close(torch.stack(calls)[:, row], torch.stack(points), rtol=0, atol=1e-6)


@pytest.mark.parametrize("parameters", [APGDCE(steps=1, restarts=2), APGDT(steps=1, restarts=2, targets=2)])
def test_every_run_of_auto_pgd_starts_at_a_point_keyed_by_seed_and_restart(parameters: APGDCE | APGDT) -> None:
    given, seen = replace(case(strength=1e-5), seed=3), []

    def watched(x: Tensor) -> Tensor:
        seen.append(x.detach().clone())
        return given.logits(x)

    run_attack(replace(given, logits=watched), parameters)
    runs = seen if isinstance(parameters, APGDCE) else seen[1:]  # the first ranks the classes
    each = len(runs) // 2
    for restart in (0, 1):
        start = given.project(given.images + given.eps * noise(3, STREAMS["start"], restart, given.index, (3, 8, 8)))
        for run in range(restart * each, (restart + 1) * each, 2):
            assert torch.equal(runs[run], start)


def test_apgd_t_aims_at_the_likeliest_wrong_classes_in_turn() -> None:
    given, aimed = case(number=6, strength=1e-5), []

    def watched(x: Tensor) -> Tensor:
        logits: Tensor = given.logits(x)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: aimed.append(gradient.argmax(1)))
        return logits

    run_attack(replace(given, logits=watched), APGDT(steps=1, targets=2))
    ranked = given.clean().argsort(1, descending=True)
    assert torch.equal(ranked[:, 0], given.labels)
    assert [targets.tolist() for targets in aimed] == [ranked[:, place].tolist() for place in (1, 1, 2, 2)]


def test_square_visits_the_points_of_a_plain_loop_over_images() -> None:
    given, seen = replace(case(number=6, strength=0.06), seed=3), []
    lower, upper = (torch.clamp(given.images + sign * given.eps, 0, 1) for sign in (-1, 1))

    def watched(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return given.logits(x)

    parameters = Square(queries=40)
    found = run_attack(replace(given, logits=watched), parameters).worst
    assert 0 < found.fooled.sum() < 6
    for row in range(6):
        own = slice(row, row + 1)
        stripes = noise(3, STREAMS["square"], 0, given.index[own], (3, 1, 8))[0]
        point = best = torch.where(stripes > 0, upper[row], lower[row])
        least = torch.tensor(torch.inf)
        for query in range(40):
            if query:
                side = square_side(query, parameters, 8, 8)
                draws = uniform(3, "square", query, given.index[own], 5)[0]
                top, left = (int(draw * (9 - side)) for draw in draws[:2])
                point = best.clone()
                for channel, draw in enumerate(draws[2:]):
                    place = channel, slice(top, top + side), slice(left, left + side)
                    point[place] = (upper if draw > 0.5 else lower)[row][place]
            torch.testing.assert_close(seen[query][row], point, rtol=0, atol=0)
            margin = predict(given.logits(point[None]), given.labels[own])[1][0]
            if least > 0 and margin < least:
                best, least = point, margin
        torch.testing.assert_close(found.margin[row], least, rtol=1e-4, atol=1e-4)


def test_squares_shrink_on_the_papers_schedule_rescaled_to_the_queries() -> None:
    sides = {n: square_side(n, Square(queries=10_000), 32, 32) for n in (1, 10, 11, 51, 201, 501, 1001, 2001, 8001)}
    expected = [0.8, 0.8, 0.4, 0.2, 0.1, 0.05, 0.025, 0.0125]
    assert list(sides.values())[:8] == [round(math.sqrt(p * 1024)) for p in expected]
    assert sides[8001] == round(math.sqrt(0.8 / 512 * 1024))
    assert square_side(6, Square(queries=5_000), 32, 32) == sides[11]
    assert square_side(9_999, Square(queries=10_000), 4, 4) == 1
