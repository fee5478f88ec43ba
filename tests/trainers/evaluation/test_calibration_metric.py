"""Calibration as a goal may speak of it: 1 - expected calibration error, from whole numbers that add up exactly."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

import pytest
import torch
from torch import Tensor

from tests.support.small import image_set, small_clip
from trainers.evaluation.measure import measure
from trainers.evaluation.readings import bin_gaps, calibration_error
from trainers.evaluation.scorer import Scorer
from trainers.evaluation.verdicts import count
from trainers.model.build import tokenizer_for
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.schema.attacks import PGD
from trainers.schema.records import GAP_UNIT, Accuracy, Score, accuracy_of, is_better, violation
from trainers.schema.suite import AttackAt
from trainers.schema.training import Goal


def exactly(confidence: Tensor, right: Tensor) -> Fraction:
    """The expected calibration error by its definition, in rational numbers: nothing is rounded."""
    bins: dict[int, list[tuple[Fraction, int]]] = {}
    for value, hit in zip(confidence.tolist(), right.tolist(), strict=True):
        bins.setdefault(ceil(Fraction(value) * 15), []).append((Fraction(value), int(hit)))
    gaps = (abs(sum(hit for _, hit in own) - sum(value for value, _ in own)) for own in bins.values())
    return sum(gaps, Fraction(0)) / len(confidence)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_whole_numbers_are_the_definition_to_the_last_digit(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    confidence = (4 * torch.randn(501, classes, generator=generator)).softmax(1).amax(1)
    right = torch.rand(501, generator=generator) < confidence
    gap = int(bin_gaps(confidence, right).abs().sum())
    assert Fraction(gap, 501 * GAP_UNIT) == exactly(confidence, right)
    assert gap / (501 * GAP_UNIT) == pytest.approx(calibration_error(confidence, right), abs=1e-12)
    score = Score.of(correct=int(right.sum()), robust=0, total=501, gaps=(gap, 501 * GAP_UNIT))
    assert score.clean_calibration == float(1 - exactly(confidence, right))
    assert score.robust_calibration == 0.0, "sure of everything, and always wrong"


def test_parts_in_any_order_add_up_to_the_whole() -> None:
    """What fp32 or fp64 sums do not: here 1,000 images are split among 7 workers, each with its own order."""
    generator = torch.Generator().manual_seed(1)
    confidence, right = torch.rand(1000, generator=generator).clamp(0.1), torch.rand(1000, generator=generator) < 0.5
    order = torch.randperm(1000, generator=generator)
    parts = [bin_gaps(confidence[own], right[own]) for own in order.tensor_split(7)]
    assert torch.equal(torch.stack(parts).sum(0), bin_gaps(confidence, right))


@pytest.mark.parametrize("protocol", ["strict", "paper", "fast"])
def test_neither_the_batch_nor_skipping_changes_it_and_it_is_that_of_every_image(protocol: str) -> None:
    images, clip = image_set("noisy", 61), small_clip()
    classes = class_embeddings(clip, images.prompts(), tokenizer_for(clip))
    scorer, index = Scorer(RobustCLIP(clip), classes), torch.arange(61)
    entry = AttackAt(attack=PGD(steps=2), eps=(4 / 255, 16 / 255))

    def found(batch: int, *, skip: bool) -> tuple[Score, ...]:
        verdicts = measure(scorer, images, index, entry, protocol=protocol, batch_size=batch, skip=skip)  # type: ignore[arg-type]
        scores = tuple(count(verdicts).scores().values())
        for score, confidence, fooled in zip(scores, verdicts.attacked.confidence, verdicts.fooled, strict=True):
            assert score.clean_calibration == float(1 - exactly(verdicts.clean.confidence, verdicts.right))
            assert score.robust_calibration == float(1 - exactly(confidence, ~fooled))
        return scores

    assert found(32, skip=True) == found(64, skip=False)


def test_means_are_over_sets_and_of_the_attacked_over_radii_first_and_none_where_one_is_unknown() -> None:
    def score(clean: int, robust: int) -> Score:
        return Score.of(correct=5, robust=5, total=8, gaps=(clean * GAP_UNIT, robust * GAP_UNIT))

    sets = {"a": {"1/255": score(1, 2), "2/255": score(1, 4)}, "b": {"1/255": score(2, 0), "2/255": score(2, 8)}}
    found = accuracy_of(sets)
    assert found.clean_calibration == pytest.approx(1 - (1 + 2) / 16)
    assert found.robust_calibration == pytest.approx(1 - ((2 + 4) / 16 + (0 + 8) / 16) / 2)
    older = {**sets, "c": {"1/255": Score.of(correct=5, robust=5, total=8)}}
    assert (accuracy_of(older).clean_calibration, accuracy_of(older).robust_calibration) == (None, None)


def test_it_ranks_epochs_and_has_floors_as_accuracies_have() -> None:
    goal = Goal(metric="clean_calibration", at_least={"robust_calibration": 0.5, "clean_accuracy": 0.6})
    good, sure, wrong = (
        Accuracy(*values) for values in ((0.7, 0.1, 0.8, 0.5), (0.7, 0.9, 0.9, 0.4), (0.5, 0.1, 0.95, 0.9))
    )
    assert [violation(each, goal) for each in (good, sure, wrong)] == pytest.approx([0, 0.1, 0.1])
    assert is_better(good, sure, goal)
    assert is_better(good, wrong, goal)
    assert is_better(Accuracy(0.6, 0, 0.81, 0.5), good, goal)
    both = Goal(metrics=("robust_accuracy", "clean_calibration"))
    assert is_better(Accuracy(0, 0.5, 0.7, 0), Accuracy(0.9, 0.4, 0.7, 0), both)
