"""TGA-ZSR and Comp-TGA by hand, against their equations in double precision, and TeCoA where the weights are 0."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.equations import ATTACK, GLOBAL_BATCH, NO_ATTACK, ExactCLIP, Setting, assert_equals, log_p, setting
from tests.support.small import FlatCLIP, small_resnet_clip
from trainers.errors import UserError
from trainers.model.robust import RobustCLIP
from trainers.objectives import Batch, Context
from trainers.objectives.tecoa import TeCoA
from trainers.objectives.tga_zsr import TGAZSR


class Pixels(RobustCLIP):
    """By hand: the patches of a 2 x 2 image are its pixels, their embeddings the colours, the first one's the image's.

    `order` permutes the colours.
    """

    def __init__(self, order: tuple[int, ...] = (0, 1, 2)) -> None:
        super().__init__(FlatCLIP(torch.eye(3).repeat_interleave(4, 1) * torch.tensor([1.0, 0, 0, 0]).repeat(3)))
        self.order = order

    def embed_tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        patches = images.flatten(2).transpose(1, 2)[:, :, list(self.order)]
        return self.embed(images)[:, list(self.order)], patches


def squares() -> tuple[Pixels, Batch, Context]:
    """Pixels red, green, 0.6 red + 0.8 green, blue, of class red; and a grey square of class green."""
    first = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0.6, 0.8, 0], [0, 0, 1]]).T.reshape(3, 2, 2)
    images = torch.stack([first, torch.full((3, 2, 2), 0.5)])
    batch = Batch(images, torch.tensor([0, 1]), torch.arange(2))
    denied = torch.eye(3)[[2, 2, 0]]  # what denies red and green is blue, what denies blue is red
    return Pixels(), batch, Context(torch.eye(3), 0, 0, 2, Pixels((1, 0, 2)), denied)


def label_by_hand() -> float:
    """At scale 2: a red pixel of class red, a grey one of class green."""
    return (math.log(math.exp(2) + 2) - 2 + math.log(3)) / 2


@pytest.mark.parametrize(
    ("options", "distance"),
    [
        # the student's map is (1, 0, 0.6, 0); the frozen one, which swaps red and green, has (0, 1, 0.8, 0)
        ({}, math.sqrt(1 + 1 + 0.2**2)),
        ({"map_distance": "pixel_mean"}, (1 + 1 + 0.2) / 4),
        # by the length over tokens, of red sqrt(1 + 1 + 0.36), of green sqrt(1 + 0.64); the first pixel is also the
        # whole image's, and minmax undoes any factor: the same (1, 0, 0.6, 0) and (0, 1, 0.8, 0)
        ({"token_norm": "tokens"}, math.sqrt(1 + 1 + 0.2**2)),
        # both are multiplied by 1 - (0, 0, 0, 1), which is 1 wherever they are not 0
        ({"complementary": True, "attention_weight": 0.08, "clean_weight": 0.05}, math.sqrt(1 + 1 + 0.2**2)),
    ],
)
def test_two_images_and_three_classes_give_the_loss_computed_by_hand(options: dict[str, Any], distance: float) -> None:
    model, batch, context = squares()
    losses = TGAZSR(logit_scale=2, **options).loss(model, batch, NO_ATTACK, context=context)
    # nothing was attacked, so both maps are the clean one; the grey square's patches are all alike: its map is 0
    parts = {"label": label_by_hand(), "attention": distance / 2, "clean": distance / 2}
    assert {name: part.item() for name, part in losses.parts.items()} == pytest.approx(parts, rel=1e-5)
    assert losses.total.item() == pytest.approx(label_by_hand() + 0.13 * distance / 2, rel=1e-5)
    (gradient,) = torch.autograd.grad(losses.total, [model.visual.weight])
    assert torch.isfinite(gradient).all()


def test_the_complementary_map_is_the_product_computed_by_hand() -> None:
    model, batch, context = squares()
    denied = torch.nn.functional.normalize(torch.tensor([[0.0, 3.0, 4.0], [1, 0, 0], [1, 0, 0]]), dim=1)
    context = Context(context.class_embeddings, 0, 0, 2, context.teacher, denied)
    losses = TGAZSR(complementary=True).loss(model, batch, NO_ATTACK, context=context)
    # red's denial scores the student's pixels (0, 0.6, 0.48, 0.8): 1 - minmax = (1, 0.25, 0.4, 0);
    # and those of the frozen encoder, red and green swapped, (0.6, 0, 0.36, 0.8): (0.25, 1, 0.55, 0)
    student, frozen = (1, 0, 0.6 * 0.4, 0), (0, 1, 0.8 * 0.55, 0)
    distance = math.dist(student, frozen)
    assert losses.parts["clean"].item() == pytest.approx(distance / 2, rel=1e-5)


OPTIONS: dict[str, dict[str, Any]] = {
    "paper": {},
    "weights": {"attention_weight": 2.0, "clean_weight": 0.7},
    "attention": {"clean_weight": 0},
    "clean": {"attention_weight": 0},
    "complementary": {"complementary": True},
    "complementary weights": {"complementary": True, "attention_weight": 1.5},
    "pixel mean": {"map_distance": "pixel_mean", "attention_weight": 30, "clean_weight": 20},
    "tokens": {"token_norm": "tokens"},
    "complementary tokens": {"complementary": True, "token_norm": "tokens", "map_distance": "pixel_mean"},
    "scale": {"logit_scale": 20},
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_loss_and_gradient_are_those_of_the_equation(options: dict[str, Any], dtype: torch.dtype) -> None:
    complementary = options.get("complementary", False)
    a = options.get("attention_weight", 0.10 if complementary else 0.08)
    b = options.get("clean_weight", 0.07 if complementary else 0.05)

    def label(here: Setting, images: Tensor) -> Tensor:
        return -here.of_label(
            log_p(options.get("logit_scale", here.model.logit_scale) * here.cosines(here.model, images))
        )

    def one_map(tokens: Tensor, text: Tensor, size: int) -> Tensor:
        """Of one image: class token and patches [1 + P, D], text [D]."""
        if options.get("token_norm") == "tokens":
            patches = (tokens / (tokens**2).sum(0).sqrt())[1:]
        else:
            patches = tokens[1:] / (tokens[1:] ** 2).sum(1, keepdim=True).sqrt()
        scores = patches @ text
        scores = (scores - scores.min()) / (scores.max() - scores.min())
        side = round(len(scores) ** 0.5)
        return bilinear(side, size) @ scores.view(side, side) @ bilinear(side, size).T

    def attention(here: Setting, encoder: RobustCLIP, images: Tensor) -> Tensor:
        whole, patches = encoder.embed_tokens(images)
        maps = []
        for tokens, y in zip(torch.cat([whole[:, None], patches], 1), here.batch.labels, strict=True):
            found = one_map(tokens, here.context.class_embeddings[y], encoder.image_size)
            if complementary:
                assert here.context.complement_embeddings is not None
                found = found * (1 - one_map(tokens, here.context.complement_embeddings[y], encoder.image_size))
            maps.append(found.flatten())
        return torch.stack(maps)

    def distance(one: Tensor, other: Tensor) -> Tensor:
        if options.get("map_distance") == "pixel_mean":
            return (one - other).abs().sum(1) / one.shape[1]
        return ((one - other) ** 2).sum(1).sqrt()

    def loss(here: Setting, attacked: Tensor) -> Tensor:
        frozen = attention(here, here.teacher, here.batch.images)
        own, clean = (attention(here, here.model, images) for images in (attacked, here.batch.images))
        return here.mean(label(here, attacked) + a * distance(own, frozen) + b * distance(clean, frozen))

    assert_equals(TGAZSR(**options), label, loss, tower="vit", dtype=dtype)


def bilinear(side: int, size: int) -> Tensor:
    """[size, side]: linear interpolation between the centres of `side` cells, constant beyond the outermost."""
    matrix = torch.zeros(size, side, dtype=torch.float64)
    for pixel in range(size):
        place = min(max((pixel + 0.5) * side / size - 0.5, 0), side - 1)
        low = min(int(place), side - 2)
        matrix[pixel, low] += 1 - (place - low)
        matrix[pixel, low + 1] += place - low
    return matrix


def test_the_plain_encoder_of_these_tests_has_the_models_tokens() -> None:
    exact, model = setting("vit"), setting("vit", torch.float32)
    assert isinstance(exact.model, ExactCLIP)
    for one, other in zip(
        exact.model.embed_tokens(exact.batch.images), model.model.embed_tokens(model.batch.images), strict=True
    ):
        torch.testing.assert_close(one.float(), other, rtol=1e-4, atol=1e-4)


def test_with_weights_of_0_it_is_tecoa_to_the_last_bit_and_nothing_else_is_computed() -> None:
    here = setting("vit", torch.float32)
    context = Context(here.context.class_embeddings, 2, 1, GLOBAL_BATCH)  # no teacher either
    forwards: list[int] = []
    handle = here.model.visual.conv1.register_forward_hook(lambda *_: forwards.append(1))
    bare = TGAZSR(attention_weight=0, clean_weight=0).loss(here.model, here.batch, ATTACK, context=context)
    handle.remove()
    assert len(forwards) == ATTACK.steps + 1
    tecoa = TeCoA().loss(here.model, here.batch, ATTACK, context=context)
    assert torch.equal(bare.total, tecoa.total)
    weights = list(here.model.parameters())
    gradients = (torch.autograd.grad(losses.total, weights) for losses in (bare, tecoa))
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))


def test_the_attacked_image_is_encoded_once_for_both_its_terms() -> None:
    here = setting("vit", torch.float32)
    forwards: list[int] = []
    here.model.visual.conv1.register_forward_hook(lambda *_: forwards.append(1))
    TGAZSR().loss(here.model, here.batch, ATTACK, context=here.context)
    assert len(forwards) == ATTACK.steps + 2


def test_images_of_another_size_have_maps_of_the_models() -> None:
    here = setting("vit", torch.float32)
    images = torch.nn.functional.interpolate(here.batch.images, (24, 24))
    batch = Batch(images, here.batch.labels, here.batch.index)
    losses = TGAZSR().loss(here.model, batch, ATTACK, context=here.context)
    assert losses.parts["clean"] * GLOBAL_BATCH <= 5 * here.model.image_size  # a norm over 16 x 16 numbers in [-1, 1]


def test_a_student_that_is_its_teacher_has_no_distance_and_a_finite_gradient() -> None:
    here = setting("vit")
    context = Context(here.context.class_embeddings, 2, 1, GLOBAL_BATCH, here.model.frozen_copy())
    losses = TGAZSR().loss(here.model, here.batch, NO_ATTACK, context=context)
    assert losses.parts["clean"] < 1e-12
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(losses.total, list(here.model.parameters())))


def test_a_resnet_has_no_tokens_and_is_refused_by_name() -> None:
    model = RobustCLIP(small_resnet_clip())
    batch = Batch(torch.rand(2, 3, 32, 32), torch.tensor([0, 1]), torch.arange(2))
    context = Context(torch.eye(16)[:3], 0, 0, 2, model.frozen_copy())
    with pytest.raises(UserError, match=r"method\.name"):
        TGAZSR().loss(model, batch, NO_ATTACK, context=context)


def test_the_weights_are_those_of_the_papers_unless_given() -> None:
    assert TGAZSR().weights == (0.08, 0.05)
    assert TGAZSR(complementary=True).weights == (0.10, 0.07)
    assert TGAZSR(complementary=True, clean_weight=0).weights == (0.10, 0)
    assert TGAZSR(attention_weight=0.3).weights == (0.3, 0.05)


def test_only_the_complementary_map_asks_for_prompts_that_deny_a_class() -> None:
    assert TGAZSR().complement_template is None
    assert TGAZSR(complementary=True).complement_template == "This is not a photo of a {}"
    assert TGAZSR().needs_teacher
    assert not TGAZSR().needs_clean_embeddings
