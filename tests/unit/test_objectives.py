"""AGFT by hand: two images, three classes, and a recomputation in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from tests.small import FlatCLIP, small_clip
from trainers.attacks import noise, pgd
from trainers.config import AttackConfig
from trainers.model import RobustCLIP
from trainers.objectives import METHODS, Batch, Context, MethodConfig
from trainers.objectives.agft import AGFT
from trainers.units import OfModel

NO_ATTACK = AttackConfig(eps=0)


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


def real() -> tuple[RobustCLIP, Batch, Context]:
    """A random transformer whose teacher is another random transformer; the last 5 samples of a batch of 9."""
    model, teacher = RobustCLIP(small_clip(0)), RobustCLIP(small_clip(1))
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(5, 3, 16, 16, generator=generator)
    classes = torch.nn.functional.normalize(torch.randn(7, 16, generator=generator), dim=1)
    labels = torch.tensor([0, 6, 2, 3, 3])
    batch = Batch(images, labels, torch.arange(4, 9), teacher.embed(images).detach())
    return model, batch, Context(classes, seed=2, epoch=1, global_batch=9)


def in_double(method: AGFT, model: RobustCLIP, batch: Batch, context: Context, attacked: Tensor) -> float:
    """The whole objective from its definition, in double precision."""
    exact = model.frozen_copy().double()

    def cosines(embeddings: Tensor) -> Tensor:
        return embeddings / embeddings.norm(dim=1, keepdim=True) @ context.class_embeddings.double().T

    def log_p(logits: Tensor) -> Tensor:
        return logits - logits.exp().sum(1, keepdim=True).log()

    with torch.no_grad():
        v, v_adv = (exact.visual((x.double() - exact.mean) / exact.std) for x in (batch.images, attacked))
        assert batch.teacher_embeddings is not None
        v_0 = batch.teacher_embeddings.double()
        s_s, s_0 = method.resolved_logit_scale(model), model.logit_scale
        log_target = log_p(method.scale_ratio * s_s * cosines(v_0))
        target = log_target.exp()
        loss = -(target * log_p(s_s * cosines(v_adv))).sum(1)
        loss += method.clean_weight * (target * (log_target - log_p(s_s * cosines(v)))).sum(1)
        loss -= method.label_weight * log_p(s_0 * cosines(v_adv))[torch.arange(5), batch.labels]
        difference = v_adv / v_adv.norm(dim=1, keepdim=True) - v_0 / v_0.norm(dim=1, keepdim=True)
        loss += method.feature_weight * (difference**2).sum(1)
        return float(loss.sum() / context.global_batch)


@pytest.mark.parametrize("attack_on", ["target", "total"])
@pytest.mark.parametrize("weights", [(0, 0, 0), (0.3, 0, 0), (0, 0.7, 0), (0, 0, 5), (0.3, 0.7, 5)])
def test_the_loss_is_its_definition_in_double_precision(weights: tuple[float, ...], attack_on: str) -> None:
    model, batch, context = real()
    names = ("clean_weight", "label_weight", "feature_weight")
    method = AGFT(**dict(zip(names, weights, strict=True)), attack_on=attack_on)  # type: ignore[arg-type]
    seen: list[Tensor] = []
    handle = model.visual.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    losses = method.loss(model, batch, AttackConfig(eps="4/255", steps=2), context=context)
    handle.remove()
    attacked = seen[2] * model.std + model.mean  # two forwards of the attack, then its result
    assert losses.total.item() == pytest.approx(in_double(method, model, batch, context, attacked), rel=2e-5)


def test_with_all_weights_zero_it_is_the_papers_loss_to_the_last_bit_and_nothing_else_is_computed() -> None:
    model, batch, context = real()
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


def test_ranks_add_up_to_the_mean_over_the_batch() -> None:
    model, batch, context = real()
    context = Context(context.class_embeddings, seed=2, epoch=1, global_batch=5)
    method, attack = AGFT(label_weight=0.3), AttackConfig(eps="4/255")
    whole = method.loss(model, batch, attack, context=context).total
    assert batch.teacher_embeddings is not None
    parts = [
        method.loss(
            model,
            Batch(batch.images[rows], batch.labels[rows], batch.index[rows], batch.teacher_embeddings[rows]),
            attack,
            context=context,
        ).total
        for rows in (slice(0, 5, 2), slice(1, 5, 2))
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_the_defaults_are_the_papers() -> None:
    method = AGFT()
    assert method.logit_scale == OfModel(of_model=1.8)
    assert method.scale_ratio == 0.4
    assert (method.clean_weight, method.label_weight, method.feature_weight) == (0, 0, 0)
    assert method.resolved_logit_scale(RobustCLIP(small_clip())) == pytest.approx(180)
    assert AGFT(logit_scale=150).resolved_logit_scale(RobustCLIP(small_clip())) == 150


@pytest.mark.parametrize(
    "wrong", [{"logit_scale": 0}, {"scale_ratio": -1}, {"label_weight": -0.1}, {"logit_scal": 1}, {"name": "tacoa"}]
)
def test_a_wrong_field_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(MethodConfig).validate_python({"name": "agft", **wrong})


def test_the_method_table_is_what_a_configuration_can_name() -> None:
    for name, method in METHODS.items():
        parsed = TypeAdapter(MethodConfig).validate_python({"name": name})
        assert type(parsed) is method
