"""AGFT by hand, against its equations in double precision, and to the last bit in its default."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.equations import NO_ATTACK, Setting, assert_equals, kl, log_p, setting
from tests.support.small import FlatCLIP, small_clip
from trainers.attacks import pgd
from trainers.draws import noise
from trainers.model.robust import RobustCLIP
from trainers.objectives import Batch, Context
from trainers.objectives.agft import AGFT
from trainers.schema.training import AttackConfig
from trainers.schema.units import OfModel


def by_hand() -> tuple[RobustCLIP, Batch, Context]:
    """One pixel, the encoder is the identity: the embedding of a colour is the colour; classes are the axes."""
    model = RobustCLIP(FlatCLIP(torch.eye(3), scale=10.0))
    images = torch.tensor([[0.5, 0.0, 0.0], [0.6, 0.8, 0.0]]).view(2, 3, 1, 1)
    teacher = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    batch = Batch(images, labels=torch.tensor([0, 1]), index=torch.arange(2), teacher_embeddings=teacher)
    return model, batch, Context(torch.eye(3), seed=0, epoch=0, global_batch=2)


def test_two_images_and_three_classes_give_the_loss_computed_by_hand() -> None:
    model, batch, context = by_hand()
    losses = AGFT(logit_scale=2, scale_ratio=0.5).loss(model, batch, NO_ATTACK, context=context)
    e = math.e
    high, low = e / (e + 2), 1 / (e + 2)  # the teacher's scale is 1 and its cosines are (1, 0, 0) and (0, 0, 1)
    first = math.log(e**2 + 2) - 2 * high  # student's logits (2, 0, 0)
    second = math.log(e**1.2 + e**1.6 + 1) - (1.2 + 1.6) * low  # student's logits (1.2, 1.6, 0)
    assert losses.total.item() == pytest.approx((first + second) / 2, rel=1e-6)
    entropy = math.log(e + 2) - high
    assert losses.parts["target_kl"].item() == pytest.approx((first + second) / 2 - entropy, rel=1e-5)


def test_the_three_extra_terms_are_those_computed_by_hand() -> None:
    model, batch, context = by_hand()
    method = AGFT(logit_scale=2, scale_ratio=0.5, clean_weight=0.5, label_weight=0.25, feature_weight=2)
    losses = method.loss(model, batch, NO_ATTACK, context=context)
    parts = {name: part.item() for name, part in losses.parts.items()}
    e = math.e
    label = (math.log(1 + 2 * e**-10) + math.log(1 + e**-2 + e**-8)) / 2  # at the model's own scale, 10
    assert parts["label"] == pytest.approx(label, rel=1e-5)
    assert parts["feature"] == pytest.approx((0 + 2) / 2)  # the second image's unit embedding is orthogonal
    assert parts["clean"] == pytest.approx(parts["target_kl"], rel=1e-5)  # nothing was attacked
    total = parts["target"] + 0.5 * parts["clean"] + 0.25 * parts["label"] + 2 * parts["feature"]
    assert losses.total.item() == pytest.approx(total, rel=1e-6)


OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "clean": {"clean_weight": 0.3},
    "label": {"label_weight": 0.7},
    "feature": {"feature_weight": 5},
    "every term": {"clean_weight": 0.3, "label_weight": 0.7, "feature_weight": 5},
    "attack on every term": {"label_weight": 0.7, "feature_weight": 5, "attack_on": "total"},
    "mean over classes": {"class_reduction": "mean"},
    "mean, every term": {"class_reduction": "mean", "label_weight": 0.7, "clean_weight": 0.3, "attack_on": "total"},
    "scales": {"logit_scale": 60, "scale_ratio": 1.5},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("tower", ["vit", "resnet"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_and_gradient_are_those_of_the_equation(options: dict[str, Any], tower: str, dtype: torch.dtype) -> None:
    w_c, w_y, w_f = (options.get(f"{name}_weight", 0) for name in ("clean", "label", "feature"))

    def scale(here: Setting) -> float:
        return float(options.get("logit_scale", 1.8 * here.model.logit_scale))

    def log_target(here: Setting) -> Tensor:
        cosines = here.cosines(here.teacher, here.batch.images)
        return log_p(options.get("scale_ratio", 0.4) * scale(here) * cosines)

    def target_term(here: Setting, images: Tensor) -> Tensor:
        products = -log_target(here).exp() * log_p(scale(here) * here.cosines(here.model, images))
        return products.sum(1) / (7 if options.get("class_reduction") == "mean" else 1)

    def every_term(here: Setting, images: Tensor) -> Tensor:
        v, v_0 = here.model.embed(images), here.teacher.embed(here.batch.images)
        feature = ((v / v.norm(dim=1, keepdim=True) - v_0 / v_0.norm(dim=1, keepdim=True)) ** 2).sum(1)
        label = -here.of_label(log_p(here.model.logit_scale * here.cosines(here.model, images)))
        return target_term(here, images) + w_y * label + w_f * feature

    def loss(here: Setting, attacked: Tensor) -> Tensor:
        clean = kl(log_target(here), log_p(scale(here) * here.cosines(here.model, here.batch.images)))
        return here.mean(every_term(here, attacked) + w_c * clean)

    attacked = every_term if options.get("attack_on") == "total" else target_term
    assert_equals(AGFT(**options), attacked, loss, tower=tower, dtype=dtype)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_mean_over_classes_is_the_sum_by_their_number_in_the_first_term_only(reduction: Any) -> None:
    model, batch, context = by_hand()
    method = AGFT(logit_scale=2, scale_ratio=0.5, clean_weight=1, label_weight=1, class_reduction=reduction)
    both = method.loss(model, batch, NO_ATTACK, context=context)
    plain = AGFT(logit_scale=2, scale_ratio=0.5, clean_weight=1, label_weight=1)
    parts = plain.loss(model, batch, NO_ATTACK, context=context).parts
    factor = {"sum": 1, "mean": 1 / 3}[reduction]
    for name in ("target", "target_kl"):
        torch.testing.assert_close(both.parts[name], factor * parts[name])
    for name in ("clean", "label"):
        assert torch.equal(both.parts[name], parts[name])
    torch.testing.assert_close(both.total, factor * parts["target"] + parts["clean"] + parts["label"])


def test_with_all_weights_zero_it_is_the_papers_loss_to_the_last_bit_and_nothing_else_is_computed() -> None:
    here = setting("vit", torch.float32)
    model, batch, context = here.model, here.batch, here.context
    forwards: list[int] = []
    handle = model.visual.register_forward_hook(lambda *_: forwards.append(1))
    losses = AGFT().loss(model, batch, AttackConfig(eps="4/255", steps=2), context=context)
    handle.remove()
    assert len(forwards) == 3  # two steps of the attack, one update
    assert sorted(losses.parts) == ["target", "target_kl"]

    assert batch.teacher_embeddings is not None
    target = 0.4 * (1.8 * model.logit_scale) * (model.unit(batch.teacher_embeddings) @ context.class_embeddings.T)
    target = target.softmax(1)

    def paper(images: Tensor) -> Tensor:
        student = 1.8 * model.logit_scale * (model.unit(model.embed(images)) @ context.class_embeddings.T)
        return -(target * student.log_softmax(1)).sum(1)

    start = noise(2, 1, 0, batch.index, (3, 16, 16))
    attacked = pgd(paper, batch.images, eps=4 / 255, step_size=4 / 255, steps=2, start=start)
    assert torch.equal(losses.total, paper(attacked).sum() / 9)


def test_the_defaults_are_the_papers() -> None:
    method = AGFT()
    assert method.logit_scale == OfModel(of_model=1.8)
    assert method.scale_ratio == 0.4
    assert (method.clean_weight, method.label_weight, method.feature_weight) == (0, 0, 0)
    assert (method.attack_on, method.class_reduction) == ("target", "sum")
    assert method.resolved_logit_scale(RobustCLIP(small_clip())) == pytest.approx(180)
    assert AGFT(logit_scale=150).resolved_logit_scale(RobustCLIP(small_clip())) == 150
