"""Protocol fast: nobody is called fooled whom fp32 calls right, and the record says how far it is from strict."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.small import image_set, pgd_suite, small_clip
from trainers.arithmetic import exact_math
from trainers.attacks import Case
from trainers.data import load_dataset
from trainers.data.base import ImageSet
from trainers.evaluation import measure as module
from trainers.evaluation.fast import EXACT, EXTRA, MISSED, SAME, UNCHECKED, Checks, fast_attack
from trainers.evaluation.measure import evaluate
from trainers.evaluation.scorer import Scorer
from trainers.evaluation.verdicts import Verdicts, count, gather, join_verdicts, pack_verdicts, unpack_verdicts
from trainers.model.build import tokenizer_for
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.schema.suite import problems
from trainers.schema.training import ModelConfig

EPS = 1 / 255


def fitted(seed: int, images: ImageSet) -> tuple[RobustCLIP, Tensor]:
    """A random model whose class embeddings are its own class means, so that margins are small."""
    model = RobustCLIP(small_clip(seed))
    with torch.no_grad():
        embeddings = model.unit(model.embed(images.images.float() / 255))
    means = torch.stack([embeddings[images.labels == label].mean(0) for label in range(4)])
    return model, model.unit(means)


def both(model: RobustCLIP, images: ImageSet, classes: Tensor, **how: Any) -> tuple[Verdicts, Verdicts]:
    return tuple(  # type: ignore[return-value]
        evaluate(model, images, classes, pgd_suite(images.name, protocol=protocol, **how))
        for protocol in ("strict", "fast")
    )


def inside(strict: Verdicts, fast: Verdicts) -> bool:
    """Is the strict protocol's count where the record says?"""
    expected, found = count(strict), count(fast)
    assert found.checks is not None
    for ours, theirs, checks in zip(found.robust_correct, expected.robust_correct, found.checks, strict=True):
        estimate, low, high = checks.bias(found.n)
        assert low <= estimate <= high
        if not low <= (ours - theirs) / found.n <= high:
            return False
    return True


def test_whom_the_search_alone_takes_for_fooled_is_attacked_again_and_every_fooled_image_is_one_in_fp32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = image_set("set", 400)
    doubtful = 0

    def watched(scorer: Scorer, case: Case, parameters: Any) -> tuple[Tensor, Tensor]:
        nonlocal doubtful
        found, known = fast_attack(scorer, case, parameters)
        assert ((found - case.images).abs() <= case.eps + 1e-6).all()
        with torch.no_grad(), exact_math():
            logits = model.logits(model.embed(found), classes, model.logit_scale)
        fooled[case.index] = logits.argmax(1) != case.labels
        doubtful += int((known == EXACT).sum())
        return found, known

    monkeypatch.setattr(module, "fast_attack", watched)
    model, classes = fitted(0, images)
    fooled = torch.zeros(400, dtype=torch.bool)
    strict, fast = both(model, images, classes, eps=(2 * EPS,), steps=4)
    assert doubtful > 0
    assert torch.equal(strict.clean.prediction, fast.clean.prediction)
    attacked = fast.right
    assert torch.equal(fast.fooled[0][attacked], fooled[attacked])
    assert fast.known is not None
    exact = attacked & (fast.known[0] == EXACT)
    assert torch.equal(fast.fooled[0][exact], strict.fooled[0][exact])
    checked = (fast.known[0] == SAME) | (fast.known[0] == MISSED)
    assert checked.any()
    assert torch.equal(fast.fooled[0][checked], strict.fooled[0][checked])
    assert (fast.known[0][~attacked] == EXACT).all()


def test_for_five_models_the_strict_count_is_inside_the_records_interval() -> None:
    images = image_set("set", 200)
    for seed in range(5):
        model, classes = fitted(seed, images)
        strict, fast = both(model, images, classes, eps=(EPS, 3 * EPS), steps=3)
        assert inside(strict, fast), seed


@pytest.mark.slow
def test_for_the_tiny_clip_and_four_models_near_it_the_strict_count_is_inside_the_records_interval() -> None:
    images = load_dataset("tiny-digits")
    clip = load_clip(ModelConfig(arch="tiny-clip", pretrained="bundled"))
    classes = class_embeddings(clip, images.prompts(), tokenizer_for(clip))
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        model = RobustCLIP(clip)
        strict, fast = both(model, images, classes, eps=(EPS, 2 * EPS), steps=10, samples=200)
        assert inside(strict, fast), number
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.02 * parameter.std() * torch.randn(parameter.shape, generator=generator)


def test_a_verdict_of_protocol_fast_depends_on_the_image_alone_and_survives_its_file() -> None:
    images = image_set("set", 75)
    model, classes = fitted(1, images)
    settings = pgd_suite("set", eps=(EPS, 2 * EPS), steps=3, protocol="fast")
    whole = evaluate(model, images, classes, settings)
    parts = [evaluate(model, images, classes, settings, rank=rank, world_size=3) for rank in range(3)]
    again, _ = unpack_verdicts(pack_verdicts(whole, {}), "there")
    assert whole.known is not None
    for other in (join_verdicts(parts), gather(whole), again):
        assert other.known is not None
        assert torch.equal(other.known, whole.known)
        assert torch.equal(other.fooled, whole.fooled)
        assert count(other) == count(whole)
    assert all(score.bias is not None for score in count(whole).scores().values())


def test_the_bias_is_what_the_checked_images_say_of_the_others() -> None:
    estimate, low, high = Checks(unchecked=90, same=9, missed=1, extra=0).bias(200)
    assert estimate == pytest.approx(90 * 0.1 / 200)
    assert low < estimate < high
    estimate, low, high = Checks(unchecked=90, same=8, missed=1, extra=1).bias(200)
    assert estimate == pytest.approx(-1 / 200)  # the one that strict would not have fooled is known
    assert low < 0 < high
    assert Checks(unchecked=0, same=3, missed=1, extra=0).bias(200) == (0, 0, 0)
    assert Checks(unchecked=20, same=0, missed=0, extra=0).bias(200) == (0, -0.1, 0.1)
    assert {EXACT, UNCHECKED, SAME, MISSED, EXTRA} == set(range(5))


def test_only_a_search_may_be_measured_so() -> None:
    suite = pgd_suite("tiny-digits", eps=(EPS,), steps=2, protocol="fast")
    assert any("evaluate.select" in text for text in problems(suite))
