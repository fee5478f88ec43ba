"""The sanity checks' parts: closed forms, costs by counting, and what they do where something is missing."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.attacked import CLASSES, case, network
from trainers.attacks import Case, run_attack
from trainers.evaluation.sanity import CHECKS, Finding, NotApplicable, Subject, passes, sanity_checks
from trainers.evaluation.sanity.checks import _follows
from trainers.evaluation.sanity.settings import STEPS, huge_eps, unmodified_eps
from trainers.schema.attacks import PGD

torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first


def arguments(given: Case) -> dict[str, Any]:
    """Of `sanity_checks`: the case, and its model beside itself as the unmodified one."""
    fields = ("logits", "images", "labels", "index", "num_classes", "eps", "norm", "seed")
    return {name: getattr(given, name) for name in fields} | {"original": given.logits}


def logits_subject(clean: Tensor, labels: Tensor, original: Tensor | None = None) -> Subject:
    """Images whose only pixel is their number, and models that look their logits [n, K] up."""
    images = torch.arange(len(labels)).float().view(-1, 1, 1, 1).expand(-1, 3, 1, 1)

    def reader(table: Tensor) -> Any:
        return lambda x: table[x[:, 0, 0, 0].long()]

    other = None if original is None else reader(original)
    index = torch.arange(len(labels))
    return Subject(reader(clean), other, images, labels, index, clean.shape[1], 0.1, "linf", 0, 200)


def checked(given: Case, **changes: Any) -> dict[str, Finding]:
    return {finding.name: finding for finding in sanity_checks(**(arguments(given) | changes))}


class Counted:
    """A model of `classes` classes that is never fooled, though its gradient is not 0; counts passes of rows."""

    def __init__(self, classes: int) -> None:
        self.weight = torch.randn(192, classes, generator=torch.Generator().manual_seed(0)) / 100
        self.weight[:, 0] += 0.01  # no class is a mirror of another: DLR has a gradient too
        self.bias = torch.linspace(90.0, 0.0, classes)
        self.forward = self.backward = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.forward += len(images)
        if images.requires_grad:
            images = _Tap.apply(images, self)
        return images.flatten(1) @ self.weight + self.bias


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, model: Counted) -> Tensor:
        ctx.model = model
        return images.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.model.backward += len(gradient)
        return gradient, None


@pytest.mark.parametrize(
    ("classes", "norm", "original"), [(2, "linf", True), (3, "l2", True), (5, "linf", True), (5, "l2", False)]
)
def test_an_image_that_is_never_fooled_costs_what_passes_says(classes, norm, original):
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    model = Counted(classes)
    given = Case(model, images, torch.zeros(3, dtype=torch.int64), torch.arange(3), 0.01, classes, norm)  # type: ignore[arg-type]
    found = checked(given, original=model if original else None)
    assert found["pgd-apgd-gap"].outcome == "passed"  # it was reached
    forward, backward = passes(num_classes=classes, norm=norm, original=original)
    noise = 1  # not looked at where the attack costs nothing
    assert (model.forward / 3 + noise, model.backward / 3) == (forward, backward)
    assert forward + backward <= 1500


def test_pgd_that_does_not_end_early_has_the_verdicts_of_the_attack():
    for norm in ("linf", "l2"):
        given = case(norm, number=32)
        s = Subject(**arguments(given), batch=200)
        expected = run_attack(given, PGD(steps=STEPS)).worst.fooled
        assert 0 < expected.sum() < 32
        assert torch.equal(s.strict[1].any(1), expected)
        assert s.strict[0].shape == (32, STEPS + 1)


def test_nothing_depends_on_how_many_images_are_under_attack_together():
    given = case(number=16)
    whole, parts = (sanity_checks(**arguments(given), batch=batch) for batch in (200, 5))
    for one, other in zip(whole, parts, strict=True):
        assert one.outcome == other.outcome
        assert one.value == pytest.approx(other.value, rel=1e-3, abs=1e-5)


def test_weights_mode_and_random_state_are_left_alone():
    model, state = network(), torch.random.get_rng_state()
    given = case(model=model)
    with torch.no_grad():  # also where the caller has gradients off
        checked(given)
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)


def test_progress_is_told_before_every_check():
    told: list[tuple[str, int, int]] = []
    sanity_checks(**arguments(case()), progress=lambda *one: told.append(one))
    assert told == [(name, number, len(CHECKS)) for number, name in enumerate(CHECKS)]


def test_radii_of_other_image_sizes_and_norms_have_the_same_length():
    assert unmodified_eps("linf", 3 * 224 * 224) == pytest.approx(4 / 255)
    assert unmodified_eps("linf", 3 * 32 * 32) == pytest.approx(28 / 255)
    assert unmodified_eps("l2", 12) == unmodified_eps("l2", 3 * 224 * 224) == pytest.approx(6.086, abs=1e-3)
    assert huge_eps("l2", 3 * 32 * 32) == pytest.approx(huge_eps("linf", 1) * math.sqrt(3 * 32 * 32))


def test_how_well_logits_follow_is_the_correlation_over_the_classes():
    logits, reference = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))
    expected = [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(logits, reference, strict=True)]
    torch.testing.assert_close(_follows(logits, reference).float(), torch.stack(expected))
    assert _follows(torch.ones(1, 3), reference[:1, :3]) == 0


@pytest.mark.parametrize(("right", "failed"), [(4, False), (3, True)])
def test_a_model_is_above_chance_from_three_standard_errors_on(right, failed):
    labels = torch.arange(20) % 20  # chance 1 in 20: 1 of 20 expected, and 1 + 3 sqrt(20 * 1/20 * 19/20) = 3.92
    logits = nn.functional.one_hot((labels + (torch.arange(20) >= right)) % 20, 20).float()
    judged = CHECKS["above-chance"](logits_subject(logits, labels))
    assert judged.failed is failed
    assert judged.value == pytest.approx(right / 20)
    assert judged.threshold == pytest.approx(3.92 / 20, abs=1e-3)


def test_chance_is_judged_only_where_the_unmodified_model_is_above_it():
    labels = torch.arange(20)
    wrong, good = nn.functional.one_hot((labels + 1) % 20, 20).float(), nn.functional.one_hot(labels, 20).float()
    assert CHECKS["above-chance"](logits_subject(wrong, labels, good)).failed
    with pytest.raises(NotApplicable, match="unmodified CLIP itself"):
        CHECKS["above-chance"](logits_subject(wrong, labels, wrong))


def test_agreement_is_cohens_kappa():
    mine = torch.tensor([0] * 50 + [1] * 50)
    others = torch.tensor([0] * 45 + [1] * 5 + [0] * 15 + [1] * 35)  # 80 of 100 agree, 50 by chance: kappa 0.6
    s = logits_subject(nn.functional.one_hot(mine, 2).float(), mine, nn.functional.one_hot(others, 2).float())
    judged = CHECKS["agrees-with-original"](s)
    assert judged.value == pytest.approx(0.6)
    assert judged.threshold == pytest.approx(3 * 0.1)  # of unrelated models: sqrt(0.5 / 0.5 / 100)
    assert not judged.failed


def test_a_model_that_looks_at_its_neighbours_is_not_deterministic():
    given = case()
    norm = nn.BatchNorm1d(CLASSES).train()
    found = checked(replace(given, logits=lambda x: norm(given.logits(x))), original=None)
    assert found["deterministic"].outcome == "failed"


def test_without_the_unmodified_model_its_checks_are_not_applicable():
    for norm, black_box in (("linf", "passed"), ("l2", "not applicable")):
        found = checked(case(norm, number=32), original=None)
        assert found["black-box-not-better"].outcome == black_box
        for name in ("agrees-with-original", "unmodified-near-zero"):
            assert found[name].outcome == "not applicable"
            assert "unmodified CLIP" in found[name].message
            assert found[name].value is None


def test_a_gradient_that_is_not_finite_is_found_and_stops_the_attacks():
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, logits: Tensor) -> Tensor:
            return logits.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient * torch.nan

    given = case()
    found = checked(replace(given, logits=lambda x: Broken.apply(given.logits(x))), original=None)
    assert found["zero-gradients"].outcome == "failed"
    assert "not finite on 8" in found["zero-gradients"].message
    for name in ("loss-grows-with-steps", "random-noise-weaker", "pgd-apgd-gap", "black-box-not-better", "huge-budget"):
        assert found[name].outcome == "not applicable"
        assert "not finite" in found[name].message


def test_a_model_that_lost_its_images_is_found_and_does_not_crash():
    given = case(number=32, strength=0.5)
    found = checked(replace(given, logits=lambda x: given.logits(x).detach()), original=None)
    for name in ("zero-gradients", "loss-grows-with-steps", "black-box-not-better", "huge-budget"):
        assert found[name].outcome == "failed", name
    assert "hides its gradients" in found["zero-gradients"].message


def test_what_cannot_be_judged_is_refused():
    given = case()
    with pytest.raises(ValueError, match=r"eps 0.*greater than 0"):
        checked(given, eps=0)
    with pytest.raises(ValueError, match="not finite on 8 of 8 images"):
        checked(given, logits=lambda x: given.logits(x) * torch.nan)


def test_a_gradient_that_points_the_wrong_way_lets_the_loss_fall():
    class Reversed(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, images: Tensor) -> Tensor:
            return images.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return -gradient

    given = case(number=32)
    found = checked(replace(given, logits=lambda x: given.logits(Reversed.apply(x))), original=None)
    for name in ("loss-grows-with-steps", "black-box-not-better", "huge-budget"):
        assert found[name].outcome == "failed", name
    assert found["loss-grows-with-steps"].value < 0


def test_noise_that_costs_as_much_as_the_attack_is_found():
    given = case(number=32)
    images = (8 * given.images).round() / 8
    labels = given.logits(images).argmax(1)

    def off_the_grid_is_wrong(x: Tensor) -> Tensor:
        off = (8 * x - (8 * x).round()).abs().flatten(1).mean(1) > 0.05
        logits = given.logits((8 * x.detach()).round() / 8)
        return torch.where(off[:, None], logits.roll(1, 1), logits)

    found = checked(replace(given, logits=off_the_grid_is_wrong, images=images, labels=labels), original=None)
    assert found["random-noise-weaker"].outcome == "failed"
    assert found["random-noise-weaker"].value == 1
