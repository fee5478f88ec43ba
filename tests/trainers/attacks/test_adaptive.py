"""The adaptive tier breaks models that round pixels and that answer at random, and changes nothing on a sound one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.support.attacked import case
from trainers.attacks import Case, predict, run_attack
from trainers.errors import UserError
from trainers.evaluation.measure import evaluate_sets
from trainers.model.bundled import ARCH
from trainers.model.pretrained import load_clip
from trainers.schema.adaptive import EOTPGD, SPSA, Adaptive
from trainers.schema.attacks import CW, PGD
from trainers.schema.suite import AttackAt, Suite
from trainers.schema.training import ModelConfig

LEVELS = 63  # of a pixel: coarser than a step, finer than the ball


def given(norm: str = "linf") -> Case:
    return replace(case(norm, number=24), eps=0.05 if norm == "linf" else 0.6)


def fooled(found: Case, images: Tensor) -> int:
    return int((predict(found.logits(images), found.labels)[1] < 0).sum())


def rounding(sound: Case) -> Case:
    """The same network behind pixels that are rounded: its gradient is 0 wherever there is one."""
    return replace(sound, logits=lambda x: sound.logits((x * LEVELS).round() / LEVELS))


def test_a_model_that_hides_its_gradients_looks_robust_to_pgd_and_is_broken_by_an_estimate_and_by_a_stand_in() -> None:
    sound = given()
    hiding = rounding(sound)
    plain = int(run_attack(sound, PGD()).worst.fooled.sum())
    blind = int(run_attack(hiding, PGD()).worst.fooled.sum())
    at_rest = fooled(hiding, hiding.images)
    estimated = run_attack(hiding, SPSA(probes=64))
    stood_in = run_attack(replace(hiding, surrogate=sound.logits), EOTPGD(follow="surrogate", draws=1))
    whole = run_attack(hiding, Adaptive(steps=5, draws=1, probes=64))
    assert blind <= at_rest + 3  # all that a random start finds
    assert plain >= blind + 8
    for found in (estimated, stood_in, whole):
        assert int(found.worst.fooled.sum()) >= max(plain - 4, blind + 6)
        assert fooled(hiding, found.worst.images) == int(found.worst.fooled.sum())
        assert ((found.worst.images - hiding.images).abs() <= hiding.eps + 1e-6).all()


def test_a_model_that_answers_at_random_is_broken_by_means_over_draws_and_judged_by_what_it_says_on_average() -> None:
    sound, generator = given(), torch.Generator().manual_seed(0)

    def logits(x: Tensor) -> Tensor:
        return sound.logits(x + 0.5 * torch.randn(x.shape, generator=generator))

    def of_average(images: Tensor) -> int:
        with torch.no_grad():
            return int((torch.stack([logits(images) for _ in range(400)]).mean(0).argmax(1) != sound.labels).sum())

    shuffling = replace(sound, logits=logits)
    single = run_attack(shuffling, EOTPGD(steps=10, draws=1))
    mean = run_attack(shuffling, EOTPGD(steps=10, draws=64))
    assert of_average(mean.adversarial) >= of_average(single.adversarial) + 2
    at_ease = run_attack(shuffling, PGD(steps=10))
    assert int(at_ease.worst.fooled.sum()) > of_average(
        at_ease.worst.images
    )  # what only the luckiest draw calls fooled
    assert abs(int(mean.worst.fooled.sum()) - of_average(mean.worst.images)) <= 6


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("draws", [1, 4])
def test_on_a_model_that_is_one_function_it_is_cw_to_the_last_bit(norm: str, draws: int) -> None:
    sound = given(norm)
    found = run_attack(sound, EOTPGD(steps=8, draws=draws))
    if norm == "linf":
        expected = run_attack(sound, CW(steps=8))
        assert torch.equal(found.worst.images, expected.worst.images)
        assert torch.equal(found.worst.margin, expected.worst.margin)
    else:
        once = run_attack(sound, EOTPGD(steps=8, draws=1))
        torch.testing.assert_close(found.worst.images, once.worst.images)


def test_on_the_tiny_clip_the_adaptive_tier_finds_what_cw_finds() -> None:
    clip, counts = load_clip(ModelConfig(arch=ARCH, pretrained="bundled")), {}
    for attack in (CW(steps=10), EOTPGD(steps=10, draws=2)):
        entry = AttackAt.model_validate({"attack": attack, "eps": ["2/255"], "samples": 40})
        suite = Suite(name="sound", datasets=("tiny-shapes",), attacks=(entry,))
        counts[attack.name] = evaluate_sets(clip, suite)["tiny-shapes"]
    assert counts["cw"] == counts["eot-pgd"]


def test_a_stand_in_that_is_not_given_is_asked_for() -> None:
    with pytest.raises(UserError, match=r"attack\.follow: surrogate needs a surrogate model"):
        run_attack(replace(given(), surrogate=None), EOTPGD(follow="surrogate"))
