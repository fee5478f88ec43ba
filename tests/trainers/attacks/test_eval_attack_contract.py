"""What every row of EVAL_ATTACKS must do, in every norm that it is defined in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.attacked import CLASSES, QUICK, case, rows
from trainers.attacks import EVAL_ATTACKS, Case, predict, run_attack
from trainers.schema.attacks import EvalAttackParameters
from trainers.testing.attacks import attack_contract

CHECKS = [
    pytest.param(check, id=f"{name} {what}", marks=pytest.mark.slow if name == "autoattack" else ())
    for name, row in EVAL_ATTACKS.items()
    for what, check in attack_contract(row.model_validate(QUICK[name])).items()
]


def test_the_quick_settings_are_complete() -> None:
    assert set(QUICK) == set(EVAL_ATTACKS)


@pytest.mark.parametrize("check", CHECKS)
def test_every_attack_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


@rows()
def test_but_for_last_iterates_the_image_is_the_worst(parameters: EvalAttackParameters, norm: str) -> None:
    given = case(norm, number=32)
    found = run_attack(given, parameters)
    prediction, margin = predict(given.logits(found.adversarial), given.labels)
    final = prediction != given.labels
    assert 0 < found.worst.fooled.sum() < 32  # the case is one in which it matters
    if parameters.name not in ("pgd", "cw", "mi-fgsm", "fgsm"):  # those give back their last iterate
        assert torch.equal(found.worst.fooled, final)
        torch.testing.assert_close(found.worst.margin, margin, rtol=1e-4, atol=1e-4)
        assert torch.equal(found.worst.images, found.adversarial)


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
    "eot-pgd": {"steps": 40, "draws": 1},
    "spsa": {"steps": 8, "probes": 1000},
    "adaptive": {"steps": 20, "draws": 1, "probes": 2},
}


@rows(keyed=True)
def test_on_a_linear_model_it_lowers_the_margin_by_eps_times_the_dual_norm(
    parameters: EvalAttackParameters, norm: str
) -> None:
    weight = torch.randn(3, 4, 4, generator=torch.Generator().manual_seed(2))
    if parameters.name in ("di-fgsm", "ti-fgsm", "square"):  # shifts and squares: one sign in a channel
        weight = weight.abs() * torch.tensor([1.0, -1.0, 1.0]).view(3, 1, 1)
    if parameters.name == "spsa":  # its estimate is right in sign, not in size
        weight = weight.sign()
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
