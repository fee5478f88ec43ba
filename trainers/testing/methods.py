"""What every method must do."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from trainers.model.robust import RobustCLIP
from trainers.objectives import Batch, Context, Losses, Objective
from trainers.schema.training import AttackConfig
from trainers.testing.towers import TOWERS, setting, small_clip

ATTACK = AttackConfig(eps="4/255", steps=2)
STRONG = AttackConfig(norm="l2", eps=0.5, step_size=0.3, steps=2, restarts=2, momentum=0.9)


def small_batch(model: RobustCLIP, method: Objective) -> tuple[Batch, Context]:
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
    batch, context = small_batch(model, method)
    return method.loss(model, batch, attack, context=context)


def the_loss_is_a_finite_scalar_that_reaches_every_weight(method: Objective, tower: str) -> None:
    model = RobustCLIP(TOWERS[tower]())
    losses = loss_of(model, method)
    losses.total.backward()
    assert losses.total.shape == ()
    assert torch.isfinite(losses.total)
    assert all(part.shape == () and not part.requires_grad for part in losses.parts.values())
    assert all(parameter.grad is not None for parameter in model.parameters())


def it_restores_modes_gradients_and_random_state(method: Objective) -> None:
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


def the_attack_sees_the_encoder_in_eval_mode_and_asks_for_no_weight_gradient(method: Objective) -> None:
    model = RobustCLIP(small_clip())
    batch, context = small_batch(model, method)
    seen: list[tuple[bool, bool]] = []
    visual: Any = model.visual
    visual.conv1.register_forward_hook(  # the first layer, whichever way through the encoder is taken
        lambda *_: seen.append((model.visual.training, any(p.requires_grad for p in model.parameters())))
    )
    model.train()
    method.loss(model, batch, AttackConfig(eps="4/255", steps=3), context=context)
    assert seen[:3] == [(False, False)] * 3
    assert seen[3:] == [(True, True)] * len(seen[3:])
    assert len(seen) > 3


def the_same_batch_gives_the_same_loss_and_another_epoch_another(method: Objective) -> None:
    model = RobustCLIP(small_clip())
    batch, context = small_batch(model, method)
    once = method.loss(model, batch, ATTACK, context=context).total
    again = method.loss(model, batch, ATTACK, context=context).total
    later = dataclasses.replace(context, epoch=1)
    assert torch.equal(once, again)
    assert not torch.equal(once, method.loss(model, batch, ATTACK, context=later).total)


def attacked_images_give_a_higher_loss_than_clean_ones(method: Objective, tower: str) -> None:
    model = RobustCLIP(TOWERS[tower]())
    assert loss_of(model, method).total > loss_of(model, method, AttackConfig(eps=0)).total


def after_updates_the_teacher_and_the_text_side_are_bit_identical(method: Objective, tower: str) -> None:
    clip = TOWERS[tower]()
    text = {name: value.clone() for name, value in clip.state_dict().items() if not name.startswith("visual.")}
    model = RobustCLIP(clip)
    batch, context = small_batch(model, method)
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


def parts_of_a_batch_add_up_to_the_whole_in_loss_parts_and_gradient(method: Objective, tower: str) -> None:
    # in double precision, where no gradient's sign is a matter of rounding
    here = setting(tower)
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


def an_images_perturbation_does_not_depend_on_its_batch(method: Objective, tower: str) -> None:
    here = setting(tower)
    seen: list[torch.Tensor] = []
    visual: Any = here.model.visual
    visual.conv1.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach()))
    method.loss(here.model, here.batch, ATTACK, context=here.context)
    forwards, whole = len(seen), seen[ATTACK.steps]
    seen.clear()
    for row in range(5):
        method.loss(here.model, part(here.batch, slice(row, row + 1)), ATTACK, context=here.context)
    torch.testing.assert_close(torch.cat(seen[ATTACK.steps :: forwards]), whole, rtol=0, atol=1e-10)


def bfloat16_changes_the_encoder_only(method: Objective) -> None:
    model = RobustCLIP(small_clip())
    exact = loss_of(model, method, AttackConfig(eps=0)).total
    model.precision = "bf16"
    losses = loss_of(model, method, AttackConfig(eps=0))
    assert losses.total.dtype == torch.float32
    torch.testing.assert_close(losses.total, exact, rtol=0.1, atol=0.1)


ALONE = (
    it_restores_modes_gradients_and_random_state,
    the_attack_sees_the_encoder_in_eval_mode_and_asks_for_no_weight_gradient,
    the_same_batch_gives_the_same_loss_and_another_epoch_another,
    bfloat16_changes_the_encoder_only,
)
WITH_TOWER = (
    the_loss_is_a_finite_scalar_that_reaches_every_weight,
    attacked_images_give_a_higher_loss_than_clean_ones,
    after_updates_the_teacher_and_the_text_side_are_bit_identical,
    parts_of_a_batch_add_up_to_the_whole_in_loss_parts_and_gradient,
    an_images_perturbation_does_not_depend_on_its_batch,
)


def method_contract(method: Objective) -> dict[str, Callable[[], None]]:
    """The checks by name, those that depend on it on every kind of encoder that the method can train."""
    towers = [tower for tower in TOWERS if tower == "vit" or method.teacher_output == "embedding"]
    found: dict[str, Callable[[], None]] = {check.__name__: partial(check, method) for check in ALONE}
    return found | {
        f"{check.__name__}-{tower}": partial(check, method, tower) for check in WITH_TOWER for tower in towers
    }
