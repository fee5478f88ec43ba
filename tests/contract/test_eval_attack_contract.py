"""What every row of EVAL_ATTACKS must do, in every norm that it is defined in."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.attacked import CLASSES, QUICK, case, network, rows
from trainers.attacks import EVAL_ATTACKS, Case, Outcome, predict, run_attack
from trainers.schema.attacks import EvalAttackParameters


def part(whole: Case, where: Tensor) -> Case:
    return replace(whole, images=whole.images[where], labels=whole.labels[where], index=whole.index[where])


def length(difference: Tensor, norm: str) -> Tensor:
    flat = difference.double().flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.square().sum(1).sqrt()


def same(found: Outcome, expected: Outcome, where: Tensor) -> None:
    torch.testing.assert_close(found.adversarial, expected.adversarial[where])
    torch.testing.assert_close(found.worst.margin, expected.worst.margin[where], rtol=1e-4, atol=1e-4)
    assert torch.equal(found.worst.prediction, expected.worst.prediction[where])


def test_the_table_is_complete() -> None:
    assert set(QUICK) == set(EVAL_ATTACKS)
    for name, row in EVAL_ATTACKS.items():
        assert row().name == name
        assert row.norms
        assert row.min_classes >= 2
        assert row.citation
        assert row.summary
        assert all(field.description for key, field in row.model_fields.items() if key != "name"), name


@rows()
def test_it_stays_in_the_ball_and_among_the_images(parameters: EvalAttackParameters, norm: str) -> None:
    for strength in (0.04, 0.5):
        given = case(norm, strength=strength)
        found = run_attack(given, parameters).adversarial
        assert (length(found - given.images, norm) <= given.eps * (1 + 1e-6) + 2**-22).all()
        assert found.min() >= 0
        assert found.max() <= 1
        assert not found.requires_grad


@rows()
def test_a_radius_of_0_is_the_identity_and_costs_one_forward(parameters: EvalAttackParameters, norm: str) -> None:
    given, calls = replace(case(norm), eps=0.0), []
    found = run_attack(replace(given, logits=lambda x: calls.append(x) or given.logits(x)), parameters)
    assert len(calls) == 1
    assert torch.equal(found.adversarial, given.images)
    assert not found.worst.fooled.any()
    assert torch.equal(found.worst.margin, predict(given.clean(), given.labels)[1])


@rows()
def test_the_verdict_is_that_of_the_worst_image_that_was_looked_at(parameters: EvalAttackParameters, norm: str) -> None:
    given = case(norm, number=32)
    found = run_attack(given, parameters)
    prediction, margin = predict(given.logits(found.adversarial), given.labels)
    final = prediction != given.labels
    assert 0 < found.worst.fooled.sum() < 32  # the case is one in which it matters
    assert (found.worst.fooled >= final).all()
    assert (found.worst.fooled | (found.worst.margin <= margin + 1e-4)).all()  # who is fooled is done: the first counts
    if parameters.name not in ("pgd", "cw", "mi-fgsm", "fgsm"):  # those give back their last iterate
        assert torch.equal(found.worst.fooled, final)
        torch.testing.assert_close(found.worst.margin, margin, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.worst.images, found.adversarial)


@rows(keyed=True)
def test_the_same_keys_give_the_same_images_in_any_order_and_any_batch(
    parameters: EvalAttackParameters, norm: str
) -> None:
    given = case(norm)
    whole = run_attack(given, parameters)
    assert torch.equal(run_attack(given, parameters).adversarial, whole.adversarial)
    order = torch.tensor([3, 1, 7, 0, 2, 6, 5, 4])
    same(run_attack(part(given, order), parameters), whole, order)
    for where in (torch.arange(2, 5), whole.worst.fooled.nonzero().squeeze(1), torch.tensor([6])):
        same(run_attack(part(given, where), parameters), whole, where)


@rows()
def test_it_leaves_gradients_mode_and_random_state_alone(parameters: EvalAttackParameters, norm: str) -> None:
    model = network().train()
    model[3].eval()
    given, state = case(norm, model=model), torch.random.get_rng_state()
    before = given.images.clone()
    with torch.no_grad():  # also where the caller has gradients off
        run_attack(given, parameters)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert not model[3].training
    assert given.images.grad is None
    assert not given.images.requires_grad
    assert torch.equal(given.images, before)
    assert torch.equal(torch.random.get_rng_state(), state)


MORE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "pgd": ({"steps": 2}, {"steps": 20}),
    "cw": ({"steps": 2}, {"steps": 20}),
    "mi-fgsm": ({"steps": 2, "step_size": {"of_eps": 0.25}}, {"steps": 20}),
    "di-fgsm": ({"steps": 2}, {"steps": 20}),
    "ti-fgsm": ({"steps": 2, "kernel_size": 3}, {"steps": 20, "kernel_size": 3}),
    "apgd-ce": ({"steps": 2}, {"steps": 20}),
    "apgd-dlr": ({"steps": 2}, {"steps": 20}),
    "apgd-t": ({"steps": 2}, {"steps": 20}),
    "square": ({"queries": 5}, {"queries": 100}),
    "apgd": ({"steps": 2}, {"steps": 20}),
    "ensemble": ({"steps": 2, "queries": 2}, {"steps": 20, "queries": 20}),
    "aa-agft": ({"steps": 2}, {"steps": 20}),
}


@pytest.mark.parametrize("name", MORE)
def test_more_steps_fool_no_fewer_images(name: str) -> None:
    given, row = case(number=64), EVAL_ATTACKS[name]
    few, many = (run_attack(given, row.model_validate(settings)).worst for settings in MORE[name])
    assert 0 < many.fooled.sum() < 64
    assert many.fooled.sum() >= few.fooled.sum()
    alive = ~many.fooled
    assert many.margin[alive].mean() < few.margin[alive].mean()


def linear(weight: Tensor, *, classes: int = CLASSES, bias: float = 0.0) -> Any:
    """Logits whose first is bias + half of w(x - 1/2), the second minus that half, all others far below."""

    def logits(x: Tensor) -> Tensor:
        half = (x - 0.5).flatten(1) @ weight / 2
        return torch.stack([half + bias, -half, *(half * 0 - 20 - k for k in range(classes - 2))], dim=1)

    return logits


LONG: dict[str, dict[str, Any]] = {
    **QUICK,
    "pgd": {"steps": 40},
    "cw": {"steps": 20},
    "apgd-ce": {"steps": 60},
    "apgd-dlr": {"steps": 60},
    "apgd-t": {"steps": 40},
    "square": {"queries": 600},
    "transfer": {"attack": "pgd", "settings": {"steps": 40}},
    "apgd": {"steps": 60},
    "ensemble": {"steps": 60, "queries": 20},
    "aa-agft": {"steps": 60},
}


@rows(keyed=True)
def test_on_a_linear_model_it_lowers_the_margin_by_eps_times_the_dual_norm(
    parameters: EvalAttackParameters, norm: str
) -> None:
    weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2))
    if parameters.name in ("di-fgsm", "ti-fgsm", "square"):  # shifts and squares: one sign in a channel
        weight = weight.abs() * torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1)
    model = linear(weight.flatten(), bias=8.0)
    images = torch.full((3, 3, 4, 4), 0.5)
    given = Case(model, images, torch.zeros(3, dtype=torch.int64), torch.arange(3), 0.1, CLASSES, norm, 0, model)  # type: ignore[arg-type]
    settings = type(parameters).model_validate(LONG[parameters.name])
    found = run_attack(given, settings)
    optimum = 8 - 0.1 * (weight.abs().sum() if norm == "linf" else weight.norm())
    assert optimum > 1  # never fooled, so no attack ends early
    _, margin = predict(model(found.adversarial), given.labels)
    torch.testing.assert_close(margin, optimum.expand(3), rtol=0, atol=2e-3)
    torch.testing.assert_close(found.worst.margin, optimum.expand(3), rtol=0, atol=2e-3)
