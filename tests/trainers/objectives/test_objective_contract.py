"""What every method must do, and the invariants that follow from AGFT's equations."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch

from tests.support import equations
from tests.support.equations import TOWERS
from tests.support.small import small_clip
from trainers.model.robust import RobustCLIP
from trainers.objectives import METHODS, Batch, Context, Losses, Objective
from trainers.objectives.agft import AGFT
from trainers.objectives.pmg_aft import PMGAFT
from trainers.objectives.tga_zsr import TGAZSR
from trainers.schema.training import AttackConfig

CASES: dict[str, Objective] = {
    **{name: method() for name, method in METHODS.items()},
    "agft, every term": AGFT(clean_weight=0.3, label_weight=0.5, feature_weight=2, attack_on="total"),
    "pmg-aft, official": PMGAFT(logit_scale=1, kl_reduction="sum", normalisation="imagenet"),
    "comp-tga": TGAZSR(complementary=True),
}
PAIRS = {
    f"{name}-{tower}": (method, tower)
    for name, method in CASES.items()
    for tower in TOWERS
    if tower == "vit" or method.teacher_output == "embedding"
}

every_method = pytest.mark.parametrize("method", CASES.values(), ids=CASES)
every_pair = pytest.mark.parametrize(("method", "tower"), PAIRS.values(), ids=PAIRS)
ATTACK = AttackConfig(eps="4/255", steps=2)
STRONG = AttackConfig(norm="l2", eps=0.5, step_size=0.3, steps=2, restarts=2, momentum=0.9)


def setting(model: RobustCLIP, method: Objective) -> tuple[Batch, Context]:
    """Six images; the teacher is a copy of the model as it is now."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, 3, model.image_size, model.image_size, generator=generator)
    classes, denials = torch.nn.functional.normalize(torch.randn(2, 5, 16, generator=generator), dim=2)
    embeddings = model.embed(images).detach() if method.needs_clean_embeddings else None
    teacher = model.frozen_copy() if method.needs_teacher else None
    batch = Batch(images, torch.tensor([0, 1, 2, 3, 4, 0]), torch.arange(6), embeddings)
    denials_or_none = denials if method.complement_template else None
    return batch, Context(classes, 0, 0, 6, teacher, denials_or_none)


def part(batch: Batch, rows: slice) -> Batch:
    """Some rows of a batch."""
    embeddings = None if batch.teacher_embeddings is None else batch.teacher_embeddings[rows]
    return Batch(batch.images[rows], batch.labels[rows], batch.index[rows], embeddings)


def loss_of(model: RobustCLIP, method: Objective, attack: AttackConfig = ATTACK) -> Losses:
    batch, context = setting(model, method)
    return method.loss(model, batch, attack, context=context)


@every_pair
def test_the_loss_is_a_finite_scalar_that_reaches_every_weight(method: Objective, tower: str) -> None:
    model = RobustCLIP(TOWERS[tower]())
    losses = loss_of(model, method)
    losses.total.backward()
    assert losses.total.shape == ()
    assert torch.isfinite(losses.total)
    assert all(part.shape == () and not part.requires_grad for part in losses.parts.values())
    assert all(parameter.grad is not None for parameter in model.parameters())


@every_method
def test_it_restores_modes_gradients_and_random_state(method: Objective) -> None:
    model = RobustCLIP(small_clip())
    model.train()
    next(model.visual.children()).eval()
    first = next(model.parameters()).requires_grad_(False)
    modes = [module.training for module in model.modules()]
    state = torch.random.get_rng_state()
    loss_of(model, method)
    assert [module.training for module in model.modules()] == modes
    assert [parameter is first for parameter in model.parameters() if not parameter.requires_grad] == [True]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


@every_method
def test_the_attack_sees_the_encoder_in_eval_mode_and_asks_for_no_weight_gradient(method: Objective) -> None:
    model = RobustCLIP(small_clip())
    batch, context = setting(model, method)
    seen: list[tuple[bool, bool]] = []
    model.visual.conv1.register_forward_hook(  # the first layer, whichever way through the encoder is taken
        lambda *_: seen.append((model.visual.training, any(p.requires_grad for p in model.parameters())))
    )
    model.train()
    method.loss(model, batch, AttackConfig(eps="4/255", steps=3), context=context)
    assert seen[:3] == [(False, False)] * 3
    assert seen[3:] == [(True, True)] * len(seen[3:])
    assert len(seen) > 3


@every_method
def test_the_same_batch_gives_the_same_loss_and_another_epoch_another(method: Objective) -> None:
    model = RobustCLIP(small_clip())
    batch, context = setting(model, method)
    once = method.loss(model, batch, ATTACK, context=context).total
    again = method.loss(model, batch, ATTACK, context=context).total
    later = dataclasses.replace(context, epoch=1)
    assert torch.equal(once, again)
    assert not torch.equal(once, method.loss(model, batch, ATTACK, context=later).total)


@every_pair
def test_attacked_images_give_a_higher_loss_than_clean_ones(method: Objective, tower: str) -> None:
    model = RobustCLIP(TOWERS[tower]())
    assert loss_of(model, method).total > loss_of(model, method, AttackConfig(eps=0)).total


@every_pair
def test_after_updates_the_teacher_and_the_text_side_are_bit_identical(method: Objective, tower: str) -> None:
    clip = TOWERS[tower]()
    text = {name: value.clone() for name, value in clip.state_dict().items() if not name.startswith("visual.")}
    model = RobustCLIP(clip)
    batch, context = setting(model, method)
    kept = [batch.teacher_embeddings, context.class_embeddings, context.complement_embeddings]
    before = copy.deepcopy(kept)
    frozen = {} if context.teacher is None else copy.deepcopy(context.teacher.state_dict())  # with BatchNorm's buffers
    buffers = copy.deepcopy(dict(model.named_buffers()))
    weights = copy.deepcopy(list(model.parameters()))
    if context.teacher is not None:
        context.teacher.requires_grad_(True)  # not even then does it get a gradient
    optimizer = torch.optim.SGD(model.visual.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        method.loss(model, batch, ATTACK, context=context).total.backward()
        optimizer.step()
    assert not all(torch.equal(old, new) for old, new in zip(weights, model.parameters(), strict=True))
    assert all(old is new is None or torch.equal(old, new) for old, new in zip(before, kept, strict=True))  # type: ignore
    assert all(torch.equal(clip.state_dict()[name], value) for name, value in text.items())
    assert all(torch.equal(context.teacher.state_dict()[name], value) for name, value in frozen.items())  # type: ignore[union-attr]
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())
    if context.teacher is not None:
        assert not any(module.training for module in context.teacher.modules())
        assert all(p.grad is None for p in context.teacher.parameters())


@every_pair
def test_parts_of_a_batch_add_up_to_the_whole_in_loss_parts_and_gradient(method: Objective, tower: str) -> None:
    # in double precision, where no gradient's sign is a matter of rounding
    here = equations.setting(tower)
    weights = list(here.model.parameters())
    whole = method.loss(here.model, here.batch, STRONG, context=here.context)
    rows = (slice(0, 2), slice(2, 3), slice(3, 5))
    pieces = [method.loss(here.model, part(here.batch, some), STRONG, context=here.context) for some in rows]
    torch.testing.assert_close(torch.stack([piece.total for piece in pieces]).sum(), whole.total)
    for name, value in whole.parts.items():
        torch.testing.assert_close(torch.stack([piece.parts[name] for piece in pieces]).sum(), value)
    gradients = [torch.autograd.grad(losses.total, weights) for losses in (whole, *pieces)]
    size = torch.stack([gradient.norm() for gradient in gradients[0]]).norm()
    for one, *others in zip(*gradients, strict=True):
        assert (one - torch.stack(others).sum(0)).norm() <= 1e-10 * size


@every_pair
def test_an_images_perturbation_does_not_depend_on_its_batch(method: Objective, tower: str) -> None:
    here = equations.setting(tower)
    seen: list[torch.Tensor] = []
    here.model.visual.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    method.loss(here.model, here.batch, ATTACK, context=here.context)
    forwards, whole = len(seen), seen[ATTACK.steps]
    seen.clear()
    for row in range(5):
        method.loss(here.model, part(here.batch, slice(row, row + 1)), ATTACK, context=here.context)
    torch.testing.assert_close(torch.cat(seen[ATTACK.steps :: forwards]), whole, rtol=0, atol=1e-10)


@every_method
def test_bfloat16_changes_the_encoder_only(method: Objective) -> None:
    model = RobustCLIP(small_clip())
    exact = loss_of(model, method, AttackConfig(eps=0)).total
    model.precision = "bf16"
    losses = loss_of(model, method, AttackConfig(eps=0))
    assert losses.total.dtype == torch.float32
    torch.testing.assert_close(losses.total, exact, rtol=0.1, atol=0.1)


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
    batch, context = setting(model, method)

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
    batch, context = setting(model, method)
    entropies = []
    for student in (model, RobustCLIP(small_clip(1))):
        parts = method.loss(student, batch, ATTACK, context=context).parts
        assert parts["target_kl"] >= 0
        entropies.append(parts["target"] - parts["target_kl"])
    torch.testing.assert_close(entropies[0], entropies[1])


def test_the_predicted_class_does_not_depend_on_the_scale() -> None:
    model = RobustCLIP(small_clip())
    batch, context = setting(model, AGFT())
    embeddings = model.embed(batch.images)
    predictions = [model.logits(embeddings, context.class_embeddings, scale).argmax(1) for scale in (1.0, 72.0, 180.0)]
    assert torch.equal(predictions[0], predictions[1])
    assert torch.equal(predictions[0], predictions[2])
