"""Images whose verdict is settled: they cost nothing any more, and leaving them out changes no verdict and no image."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.attacked import QUICK, case, network, rows
from trainers.attacks import EVAL_ATTACKS, Case, Outcome, Worst, run_attack
from trainers.schema.attacks import Composed, EvalAttackParameters

FINAL_ONLY = ("di-fgsm", "ti-fgsm", "transfer")  # they look at nothing but their final images


class Counted:
    """The network's logits; `rows` that were wanted, `forwards` and `backwards` of the whole batch.

    Whoever is done must stay done: nobody may ask for their logits again.
    """

    def __init__(self) -> None:
        self.net, self.done = network(), torch.zeros(1, dtype=torch.bool)
        self.rows = self.forwards = self.backwards = 0

    def __call__(self, images: Tensor, done: Tensor | None = None) -> Tensor:
        self.forwards += 1
        logits: Tensor = self.net(images)
        if logits.requires_grad:
            logits.register_hook(self._backward)
        if done is None:
            self.rows += len(images)
            return logits
        self.rows += int((~done).sum())
        assert (done >= self.done).all()
        self.done = done
        return torch.where(done[:, None], 0.0, logits)

    def _backward(self, _: Tensor) -> None:
        self.backwards += 1


def attacked(given: Case, parameters: EvalAttackParameters, **changes: Any) -> tuple[Outcome, Counted]:
    model = Counted()
    return run_attack(replace(given, logits=model, **changes), parameters), model


@pytest.mark.parametrize("settled", [False, True], ids=["nobody is done before", "some are done before"])
@rows(keyed=True)
def test_skipping_changes_no_verdict_and_no_recorded_image(
    parameters: EvalAttackParameters, norm: str, settled: bool
) -> None:
    given = case(norm, number=32)
    given = replace(given, done=torch.arange(32) % 3 == 1 if settled else None)
    (found, skipping), (expected, plain) = (attacked(given, parameters, skipping=skip) for skip in (True, False))
    assert 0 < expected.worst.fooled.sum() < 32  # the case is one in which it matters
    for name in ("fooled", "prediction", "margin", "images", "done"):
        assert torch.equal(getattr(found.worst, name), getattr(expected.worst, name)), name
    if settled or parameters.name not in (*FINAL_ONLY, "fgsm"):
        assert skipping.rows < plain.rows
    assert skipping.forwards <= plain.forwards


@rows(keyed=True)
def test_who_is_done_before_keeps_the_first_record_and_changes_nothing_for_others(
    parameters: EvalAttackParameters, norm: str
) -> None:
    given, done = case(norm, number=24), torch.arange(24) % 2 == 0
    alone, _ = attacked(given, parameters)
    found, _ = attacked(given, parameters, done=done)
    assert torch.equal(found.worst.margin[~done], alone.worst.margin[~done])
    assert torch.equal(found.worst.images[~done], alone.worst.images[~done])
    assert torch.equal(found.worst.images[done], given.images[done])
    assert torch.equal(found.worst.prediction[done], given.labels[done])
    assert found.worst.margin[done].isinf().all()
    assert torch.equal(found.worst.done, done | alone.worst.fooled)


@rows(keyed=True)
def test_nothing_is_computed_when_all_are_done(parameters: EvalAttackParameters, norm: str) -> None:
    given = case(norm, number=8)
    _, model = attacked(given, parameters, done=torch.ones(8, dtype=torch.bool), skipping=True)
    assert model.rows == 0


@pytest.mark.parametrize(
    "name", ["pgd", "cw", "apgd-ce", "apgd-dlr", "apgd-t", "square", "apgd", "ensemble", "aa-agft"]
)
def test_it_ends_when_everyone_is_fooled(name: str) -> None:
    patient = {"queries": 100} if name in ("square", "ensemble") else {}
    parameters = EVAL_ATTACKS[name].model_validate({**QUICK[name], **patient})
    found, model = attacked(case(number=8, strength=0.5), parameters)
    assert found.worst.fooled.all()
    assert model.forwards < parameters.passes(5)[0] / 1.5


@rows(keyed=True)
def test_the_recorded_image_has_the_recorded_verdict(parameters: EvalAttackParameters, norm: str) -> None:
    given = case(norm, number=24)
    found = run_attack(given, parameters).worst
    again = Worst(given.labels, given.images)
    again.look(given.logits(found.images), found.images)
    assert torch.equal(again.prediction, found.prediction)
    torch.testing.assert_close(again.margin, found.margin, rtol=1e-4, atol=1e-4)


@rows(keyed=True)
def test_it_costs_as_many_passes_as_it_says_and_no_more_where_nobody_is_fooled(
    parameters: EvalAttackParameters, norm: str
) -> None:
    kinds = ["none", "least-likely"] if "target" in type(parameters).model_fields else [None]
    for kind in kinds:
        settings = parameters if kind is None else parameters.model_copy(update={"target": kind})
        given = case(norm, strength=1e-5)
        given = replace(given, surrogate=(other := Counted()))
        found, model = attacked(given, settings)
        assert not found.worst.fooled.any()
        passes = (model.forwards + other.forwards, model.backwards + other.backwards)
        most = settings.passes(given.num_classes, norm=norm)
        assert passes == (most[0] - unasked(settings, norm, given.num_classes), most[1])


def unasked(parameters: EvalAttackParameters, norm: str, num_classes: int) -> int:
    """Forward passes that only a suspect costs, whom a mean over draws calls fooled: as many fresh draws again."""
    if isinstance(parameters, Composed):
        return sum(
            unasked(part, norm, num_classes) for part in parameters.components(norm=norm, num_classes=num_classes)
        )
    draws = getattr(parameters, "draws", 1)
    return (parameters.steps + 1) * draws if draws > 1 else 0


def test_an_image_that_is_fooled_keeps_its_record_whatever_comes() -> None:
    labels, images = torch.tensor([0, 0, 0]), torch.zeros(3, 1)
    worst = Worst(labels, images, torch.tensor([False, False, True]))
    for step, logits in enumerate(([[2.0, 0.0], [1.0, 0.0]], [[0.0, 1.0], [0.5, 0.0]], [[0.0, 9.0], [0.7, 0.0]]), 1):
        worst.look(torch.tensor([*logits, [0.0, 5.0]]), torch.full((3, 1), float(step)))
    assert worst.margin.tolist() == [-1, 0.5, torch.inf]
    assert worst.prediction.tolist() == [1, 0, 0]
    assert worst.images.squeeze(1).tolist() == [2, 2, 0]
    assert worst.done.tolist() == [True, False, True]


def test_an_image_that_loses_a_tie_is_fooled_though_its_margin_is_no_less_than_before() -> None:
    worst = Worst(torch.tensor([1]), torch.zeros(1, 1))
    worst.look(torch.tensor([[0.0, 1.0, 1.0]]), torch.ones(1, 1))
    assert worst.margin.item() == 0
    assert not worst.fooled.item()
    worst.look(torch.tensor([[1.0, 1.0, 0.0]]), torch.full((1, 1), 2.0))
    assert worst.fooled.item()
    assert worst.prediction.item() == 0
    assert worst.images.item() == 2


@pytest.mark.parametrize("first", [0, 2])
@pytest.mark.parametrize("label", [0, 1])
def test_logits_that_stop_being_numbers_on_the_way_are_refused(first: int, label: int) -> None:
    given, calls = case(number=2), []

    def model(x: Tensor) -> Tensor:
        calls.append(None)
        return torch.nn.functional.one_hot(given.labels * 0 + label, 5) * 9 + network()(x) * (
            torch.nan if len(calls) > first else 1e-3
        )

    with pytest.raises(ValueError, match="logits are not finite"):
        run_attack(replace(given, logits=model, labels=given.labels * 0 + label), EVAL_ATTACKS["pgd"]())


@pytest.mark.parametrize("name", [name for name in QUICK if name != "autoattack"])
def test_logits_that_are_no_numbers_are_refused_unless_the_image_was_done(name: str) -> None:
    given, bad = case(number=6), torch.tensor([1.0, 1, torch.nan, 1, 1, 1])[:, None]
    settings = EVAL_ATTACKS[name].model_validate(QUICK[name])
    given = replace(given, logits=lambda x: network()(x) * bad, labels=given.labels * 0, eps=1e-5)
    with pytest.raises(ValueError, match="logits are not finite"):
        run_attack(given, settings)
    run_attack(replace(given, done=torch.arange(6) == 2), settings)
