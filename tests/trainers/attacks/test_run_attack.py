"""What `run_attack` is given by callers that are not ours: it works, or says in one sentence why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.support.attacked import CLASSES, QUICK, case, network, rows
from trainers.attacks import EVAL_ATTACKS, run_attack
from trainers.attacks.case import Case
from trainers.schema.attacks import PGD, EvalAttackParameters


@rows(keyed=True)
def test_modes_and_kinds_of_numbers_change_nothing(parameters: EvalAttackParameters, norm: str) -> None:
    given = case(norm)
    expected = run_attack(given, parameters)
    small = replace(given, labels=given.labels.int(), index=given.index.to(torch.int16))
    found = [run_attack(small, parameters)]
    with torch.no_grad():
        found.append(run_attack(given, parameters))
    with torch.inference_mode():
        made_there = {name: getattr(given, name) + 0 for name in ("images", "labels", "index")}
        found.append(run_attack(replace(given, **made_there), parameters))
    for each in found:
        assert torch.equal(each.adversarial, expected.adversarial)
        assert torch.equal(each.worst.prediction, expected.worst.prediction)
        assert not each.adversarial.is_inference()


@pytest.mark.parametrize("name", EVAL_ATTACKS)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_no_image_at_all_is_attacked_by_nothing(name: str, eps: float) -> None:
    given = case()
    none = replace(given, images=given.images[:0], labels=given.labels[:0], index=given.index[:0], eps=eps)
    found = run_attack(none, EVAL_ATTACKS[name].model_validate(QUICK[name]))
    assert found.adversarial.shape == (0, 3, 8, 8)
    assert found.worst.fooled.shape == (0,)


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"eps": float("inf")}, "eps inf: a radius is finite and not negative"),
    ({"eps": float("nan")}, "eps nan: a radius is finite and not negative"),
    ({"eps": -0.1}, "eps -0.1: a radius is finite and not negative"),
    ({"labels": torch.zeros(8)}, r"labels must be whole numbers \[8\]; got torch.float32 \(8,\)"),
    ({"labels": torch.zeros(7, dtype=torch.int64)}, r"labels must be whole numbers \[8\]; got torch.int64 \(7,\)"),
    ({"labels": torch.full((8,), CLASSES)}, f"labels must be from 0 to {CLASSES - 1}; got {CLASSES} to {CLASSES}"),
    ({"labels": torch.full((8,), -1)}, "labels must be from 0 to"),
    ({"images": torch.full((8, 3, 8, 8), 1.5)}, "images must be in"),
    ({"images": torch.full((8, 3, 8, 8), torch.nan)}, "images must be in"),
    ({"images": torch.zeros(8, 3, 8, 8, dtype=torch.float64)}, "images must be float32"),
    ({"logits": lambda images: network()(images) * torch.inf}, "the model's logits are not finite"),
]


@pytest.mark.parametrize(("change", "rule"), WRONG)
def test_what_no_attack_can_be_given_is_one_sentence(change: dict[str, Any], rule: str) -> None:
    given: Case = case()
    with pytest.raises(ValueError, match=rule):
        run_attack(replace(given, **change), PGD(steps=2))
