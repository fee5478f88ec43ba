"""Sampling, counting, and what a verdict must not depend on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.support.small import FlatCLIP, image_set, pgd_suite, small_clip
from trainers.arithmetic import exact_math
from trainers.attacks import pgd
from trainers.data.base import ImageSet
from trainers.draws import noise
from trainers.evaluation import scorer
from trainers.evaluation.measure import evaluate, random_noise
from trainers.evaluation.readings import READINGS
from trainers.evaluation.verdicts import Verdicts, count, gather, join_verdicts, stratified_sample
from trainers.model.robust import RobustCLIP
from trainers.schema.suite import Suite


def fitted() -> tuple[RobustCLIP, Tensor, ImageSet]:
    """A random model whose class embeddings are its own class means: right on most images, none of them safe."""
    model, images = RobustCLIP(small_clip()), image_set("set", 75)
    with torch.no_grad():
        embeddings = model.unit(model.embed(images.images.float() / 255))
    means = torch.stack([embeddings[images.labels == label].mean(0) for label in range(4)])
    return model, model.unit(means), images


def config(*eps: str | float, steps: int = 3, protocol: str = "strict", samples: int | None = None) -> Suite:
    return pgd_suite("set", eps=eps, steps=steps, samples=samples, protocol=protocol)


def equal(a: Verdicts, b: Verdicts) -> bool:
    pairs = [(a.index, b.index), (a.label, b.label)]
    for one, other in ((a.clean, b.clean), (a.attacked, b.attacked)):
        pairs += [(getattr(one, name).nan_to_num(-1), getattr(other, name).nan_to_num(-1)) for name in READINGS]
    return all(torch.equal(one, other) for one, other in pairs)


def test_a_sample_has_the_shares_of_the_whole() -> None:
    labels = torch.tensor([0] * 40 + [1] * 30 + [2] * 20 + [3] * 10)[torch.randperm(100)]
    for number in (10, 20, 55):
        index = stratified_sample(labels, number, seed=0)
        counts = torch.bincount(labels[index], minlength=4)
        assert len(index.unique()) == number
        assert (counts - number * torch.tensor([0.4, 0.3, 0.2, 0.1])).abs().max() <= 1


def test_a_sample_is_the_same_for_every_run_and_another_for_another_seed() -> None:
    labels = torch.arange(60) % 3
    assert torch.equal(stratified_sample(labels, 30, seed=0), stratified_sample(labels, 30, seed=0))
    assert not torch.equal(stratified_sample(labels, 30, seed=0), stratified_sample(labels, 30, seed=1))
    assert torch.equal(stratified_sample(labels, None, seed=0), torch.arange(60))
    assert torch.equal(stratified_sample(labels, 1000, seed=0), torch.arange(60))


def test_strict_is_the_any_iterate_attack_on_every_right_image_alone() -> None:
    model, classes, images = fitted()
    verdicts = evaluate(model, images, classes, config("4/255", steps=3))
    attacked = verdicts.right.nonzero().squeeze(1)
    assert 0 < len(attacked) < 75
    for row in attacked[::6].tolist():
        pixels = (images.images[row : row + 1].float() / 255).expand(32, -1, -1, -1)
        label = images.labels[row].expand(32)
        seen: list[Tensor] = []

        def loss(x: Tensor, label: Tensor = label, seen: list[Tensor] = seen) -> Tensor:
            seen.append(model.logits(model.embed(x), classes, model.logit_scale))
            return torch.nn.functional.cross_entropy(seen[-1], label, reduction="none")

        start = noise(0, 0, 0, torch.tensor([row]), (3, 16, 16)).expand(32, -1, -1, -1)
        with exact_math():
            loss(pgd(loss, pixels, eps=4 / 255, step_size=1 / 255, steps=3, start=start))
        fooled = any(int(logits[0].argmax()) != int(label[0]) for logits in seen)
        assert bool(verdicts.fooled[0, row]) == fooled


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_a_verdict_does_not_depend_on_the_neighbours(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, classes, images = fitted()
    settings = config("2/255", "8/255", protocol=protocol)
    whole = evaluate(model, images, classes, settings)
    assert 0 < int(whole.fooled[1].sum()) < 75
    parts = [evaluate(model, images, classes, settings, rank=rank, world_size=3) for rank in range(3)]
    assert equal(join_verdicts(parts), whole)
    monkeypatch.setattr(scorer, "micro_batch", lambda *_: 16)
    other = evaluate(model, images, classes, settings)
    assert torch.equal(other.fooled, whole.fooled)


def test_a_radius_is_judged_alone() -> None:
    model, classes, images = fitted()
    both = evaluate(model, images, classes, config("2/255", "8/255"))
    alone = evaluate(model, images, classes, config("8/255"))
    assert torch.equal(both.fooled[1], alone.fooled[0])
    assert torch.equal(both.attacked.margin[1], alone.attacked.margin[0])


def test_fooled_means_a_wrong_prediction_and_a_negative_margin() -> None:
    model, classes, images = fitted()
    for protocol in ("strict", "paper"):
        verdicts = evaluate(model, images, classes, config("4/255", protocol=protocol))
        assert torch.equal(verdicts.fooled[0], verdicts.attacked.prediction[0] != verdicts.label)
        assert torch.equal(verdicts.fooled[0], verdicts.attacked.margin[0] < 0)


def test_evaluation_leaves_the_model_as_it_was() -> None:
    model, classes, images = fitted()
    model.precision = "bf16"
    next(model.parameters()).requires_grad_(False)
    flags = [parameter.requires_grad for parameter in model.parameters()]
    first = evaluate(model, images, classes, config("2/255", samples=20))
    assert model.precision == "bf16"
    assert [parameter.requires_grad for parameter in model.parameters()] == flags
    assert all(parameter.grad is None for parameter in model.parameters())
    model.precision = "fp32"
    assert equal(first, evaluate(model, images, classes, config("2/255", samples=20)))


def test_counts_of_an_encoder_that_is_a_matrix_are_known() -> None:
    """One pixel, classes along red and green: an image survives iff its margin exceeds what eps can move."""
    model = RobustCLIP(FlatCLIP(torch.eye(3)))
    red = torch.tensor([[140, 100, 0], [121, 120, 0], [110, 120, 0], [130, 120, 0]], dtype=torch.uint8)
    images = ImageSet("pixels", red.view(4, 3, 1, 1), torch.zeros(4, dtype=torch.int64), ("red", "green"), ("{}",))
    result = count(evaluate(model, images, torch.eye(3)[:2], config("1/255", "6/255", 0, steps=8)))
    assert (result.n, result.clean_correct, result.robust_correct) == (4, 3, (2, 1, 3))
    assert result.robust_accuracy == pytest.approx((2 + 1 + 3) / 12)
    scores = result.scores()
    assert list(scores) == ["1/255", "6/255", "0/255"]
    assert (scores["6/255"].correct, scores["6/255"].robust, scores["6/255"].total) == (3, 1, 4)


def test_gathering_without_other_ranks_changes_nothing() -> None:
    model, classes, images = fitted()
    verdicts = evaluate(model, images, classes, config("2/255", samples=20))
    assert equal(gather(verdicts), verdicts)


def test_random_noise_of_the_same_size_fools_fewer_than_the_attack() -> None:
    model, classes, images = fitted()
    settings = config("4/255", "8/255", steps=5)
    attacked = count(evaluate(model, images, classes, settings))
    shaken = random_noise(model, images, classes, settings)
    assert shaken.clean_correct == attacked.clean_correct
    assert sum(shaken.robust_correct) > sum(attacked.robust_correct)


def test_the_protocol_and_the_seed_are_those_of_the_configuration() -> None:
    model, classes, images = fitted()
    strict, paper = (evaluate(model, images, classes, config("4/255", protocol=name)) for name in ("strict", "paper"))
    wrong = ~strict.right
    assert torch.equal(strict.attacked.margin[0][wrong], strict.clean.margin[wrong])
    assert (paper.attacked.margin[0][wrong] != paper.clean.margin[wrong]).any()
    settings = config("4/255", samples=30).model_copy(update={"seed": 3})
    found = evaluate(model, images, classes, settings)
    assert torch.equal(found.index, stratified_sample(images.labels, 30, seed=3))
    assert not torch.equal(found.index, stratified_sample(images.labels, 30, seed=0))
