"""What every method must do, and the invariants that follow from AGFT's equations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.support.small import small_clip
from trainers.model.robust import RobustCLIP
from trainers.objectives import METHODS, Losses, Objective
from trainers.objectives.agft import AGFT
from trainers.objectives.pmg_aft import PMGAFT
from trainers.objectives.tga_zsr import TGAZSR
from trainers.schema.training import AttackConfig
from trainers.testing.methods import ATTACK, loss_of, method_contract, small_batch

CASES: dict[str, Objective] = {
    **{name: method() for name, method in METHODS.items()},
    "agft, every term": AGFT(clean_weight=0.3, label_weight=0.5, feature_weight=2, attack_on="total"),
    "pmg-aft, official": PMGAFT(logit_scale=1, kl_reduction="sum", normalisation="imagenet"),
    "comp-tga": TGAZSR(complementary=True),
}
CHECKS = {f"{name}-{what}": check for name, method in CASES.items() for what, check in method_contract(method).items()}


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS)
def test_every_method_keeps_the_contract(check: Callable[[], None]) -> None:
    check()


def agft(**changes: Any) -> tuple[RobustCLIP, Losses]:
    model = RobustCLIP(small_clip())
    losses = loss_of(model, AGFT(**changes), AttackConfig(eps=0))
    losses.total.backward()
    return model, losses


def gradient_norm(model: RobustCLIP) -> float:
    return float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm())


def test_an_uncalibrated_student_that_equals_its_teacher_has_nothing_to_learn() -> None:
    still, losses = agft(scale_ratio=1.0)
    moving, _ = agft(scale_ratio=0.4)
    assert abs(losses.parts["target_kl"]) < 1e-5  # the loss is the mean entropy of the target
    assert gradient_norm(still) < 1e-4 * gradient_norm(moving)


def test_calibration_shrinks_the_cosine_margins() -> None:
    model, method = RobustCLIP(small_clip()), AGFT(scale_ratio=0.4)
    batch, context = small_batch(model, method)

    def spread() -> float:
        cosines = model.logits(model.embed(batch.images), context.class_embeddings, 1.0)
        top = cosines.topk(2, dim=1).values
        return float((top[:, 0] - top[:, 1]).detach().mean())

    before = spread()
    method.loss(model, batch, AttackConfig(eps=0), context=context).total.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 1e-5 * parameter.grad
    assert spread() < before


def test_the_loss_is_at_least_the_targets_entropy_which_no_weight_changes() -> None:
    method = AGFT()
    model = RobustCLIP(small_clip())
    batch, context = small_batch(model, method)
    entropies = []
    for student in (model, RobustCLIP(small_clip(1))):
        parts = method.loss(student, batch, ATTACK, context=context).parts
        assert parts["target_kl"] >= 0
        entropies.append(parts["target"] - parts["target_kl"])
    torch.testing.assert_close(entropies[0], entropies[1])


def test_the_predicted_class_does_not_depend_on_the_scale() -> None:
    model = RobustCLIP(small_clip())
    batch, context = small_batch(model, AGFT())
    embeddings = model.embed(batch.images)
    predictions = [model.logits(embeddings, context.class_embeddings, scale).argmax(1) for scale in (1.0, 72.0, 180.0)]
    assert torch.equal(predictions[0], predictions[1])
    assert torch.equal(predictions[0], predictions[2])
