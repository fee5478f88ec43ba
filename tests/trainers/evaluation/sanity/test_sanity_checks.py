"""Sound models pass every sanity check; whoever hides or confuses something fails the checks that are for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch

from trainers.attacks import LogitsFn
from trainers.data import load_dataset
from trainers.data.drawn.datasets import STATED_EPS
from trainers.evaluation.sanity import CHECKS, Subject, sanity_checks
from trainers.evaluation.scorer import Scorer, exact
from trainers.evaluation.verdicts import stratified_sample
from trainers.model.build import tokenizer_for
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.objectives import METHODS, Batch, Context
from trainers.schema.training import AttackConfig, ModelConfig

torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first

PAGE = Path(__file__).parents[4] / "docs" / "sanity.md"
DIGITS, FEW = "tiny-digits", 32  # images of one micro-batch
MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(3, 1, 1)
STD = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(3, 1, 1)

Broken = Callable[[LogitsFn], LogitsFn]
MASKED = ("zero-gradients", "loss-grows-with-steps", "black-box-not-better", "huge-budget")
BROKEN: dict[str, tuple[Broken, tuple[str, ...]]] = {  # what was done to a sound model, and which checks fail
    "normalised twice": (lambda f: lambda x: f((x - MEAN) / STD), ("input-range",)),
    "not normalised": (lambda f: lambda x: f(MEAN + STD * x), ("input-range",)),
    "pixels in 8 levels": (lambda f: lambda x: f((7 * x).round() / 7), MASKED),
    "logits in steps of a quarter": (lambda f: lambda x: (4 * f(x)).round() / 4, MASKED[:2]),
    "images detached": (lambda f: lambda x: f(x).detach(), MASKED[:2]),
    "pixels clipped": (lambda f: lambda x: f(x.clamp(0.3, 0.7)), ("zero-gradients",)),
    "logit scale 10,000 times too large": (lambda f: lambda x: 1e4 * f(x), ("zero-gradients", "pgd-apgd-gap")),
    "noise on the input": (lambda f: lambda x: f(x + 0.02 * torch.randn_like(x)), ("deterministic",)),
    "classes in another order": (lambda f: lambda x: f(x).roll(1, 1), ("above-chance", "agrees-with-original")),
}


def tiny() -> RobustCLIP:
    return RobustCLIP(load_clip(ModelConfig(arch="tiny-clip", pretrained="bundled")))


@pytest.fixture(scope="module")
def tuned() -> RobustCLIP:
    """40 steps of AGFT on the tiny CLIP at its stated radius, with its embeddings kept near: 85 % on the digits."""
    clip = load_clip(ModelConfig(arch="tiny-clip", pretrained="bundled"))
    model, data = RobustCLIP(clip), load_dataset("tiny-color-shapes")
    teacher, classes = model.frozen_copy(), class_embeddings(clip, data.prompts(), tokenizer_for(clip))
    method = METHODS["agft"].model_validate(
        {"logit_scale": {"of_model": 0.86}, "scale_ratio": 0.518, "feature_weight": 20}
    )
    attack = AttackConfig(eps=STATED_EPS, steps=3, step_size={"of_eps": 0.5})
    optimizer = torch.optim.AdamW(model.visual.parameters(), lr=1e-3)
    order = torch.randperm(len(data.labels), generator=torch.Generator().manual_seed(0))
    for step, index in enumerate(order[: 40 * 32].split(32)):
        images = data.images[index].float() / 255
        with torch.no_grad():
            batch = Batch(images, data.labels[index].long(), index, teacher.embed(images))
        context = Context(classes, seed=0, epoch=step, global_batch=32)
        optimizer.zero_grad()
        method.loss(model, batch, attack, context=context).total.backward()
        optimizer.step()
    return model


def examined(model: RobustCLIP, number: int, dataset: str = DIGITS) -> Subject:
    """`number` images of a set, class-stratified, and the unmodified tiny CLIP beside the model."""
    clip = load_clip(ModelConfig(arch="tiny-clip", pretrained="bundled"))
    data = load_dataset(dataset)
    classes = class_embeddings(clip, data.prompts(), tokenizer_for(clip))
    index = stratified_sample(data.labels, number, seed=0)
    images, labels = data.images[index].float() / 255, data.labels[index].long()
    scorer, original = Scorer(model, classes), Scorer(RobustCLIP(clip), classes)
    return Subject(scorer, original, images, labels, index, len(classes), STATED_EPS, "linf", 0, 200)


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """For the model that draws noise."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


def outcomes(s: Subject, broken: Broken | None = None) -> dict[str, str]:
    """Of all checks; each sentence is printed, for the page's table."""
    arguments = {field.name: getattr(s, field.name) for field in fields(s)}
    with exact(s.logits.model, s.original.model):  # type: ignore[union-attr]
        if broken is not None:
            arguments["logits"] = broken(s.logits)
        findings = sanity_checks(**arguments)
    for finding in findings:
        print(f"{finding.outcome:>14} {finding.name}: {finding.message}")
    return {finding.name: finding.outcome for finding in findings}


def test_the_unmodified_tiny_clip_passes_every_check() -> None:
    assert set(outcomes(examined(tiny(), FEW)).values()) == {"passed"}


def test_a_model_tuned_by_agft_passes_every_check(tuned: RobustCLIP) -> None:
    assert set(outcomes(examined(tuned, FEW)).values()) == {"passed"}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_model_fails_the_checks_that_are_for_it(what: str) -> None:
    broken, names = BROKEN[what]
    s = examined(tiny(), 100 if names == ("input-range",) else FEW)  # two looks at each: a difference of means
    with exact(s.logits.model, s.original.model):  # type: ignore[union-attr]
        s = replace(s, logits=broken(s.logits))
        for name in names:
            assert CHECKS[name](s).failed, name


def test_double_normalisation_of_a_tuned_model_is_found_too(tuned: RobustCLIP) -> None:
    s = examined(tuned, 100)
    with exact(tuned), torch.no_grad():
        for original in (s.original, None):  # and without the unmodified model to compare with
            judged = CHECKS["input-range"](
                replace(s, logits=BROKEN["normalised twice"][0](s.logits), original=original)
            )
            assert judged.failed
            assert "un-normalised" in judged.message


def test_double_normalisation_is_found_where_the_unmodified_model_suffers_from_it_as_well() -> None:
    s = examined(tiny(), 100)
    with exact(s.logits.model, s.original.model):  # type: ignore[union-attr]
        twice = BROKEN["normalised twice"][0]
        assert CHECKS["input-range"](replace(s, logits=twice(s.logits), original=twice(s.original))).failed


def test_an_unmodified_model_that_the_attack_does_not_reach_is_found() -> None:
    s = examined(tiny(), FEW)
    with exact(s.logits.model, s.original.model):  # type: ignore[union-attr]
        judged = CHECKS["unmodified-near-zero"](replace(s, original=BROKEN["pixels in 8 levels"][0](s.original)))
    assert judged.failed
    assert "28/255" in judged.message


SOUND = [  # and what fails all the same, rightly: 20 steps of PGD leave 7 % of the colours right, Auto-PGD none
    ("unmodified", DIGITS, ()),
    ("unmodified", "tiny-colors", ("pgd-apgd-gap",)),
    ("tuned", DIGITS, ()),
    ("tuned", "tiny-colors", ()),
]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("which", "dataset", "failing"), SOUND)
def test_sound_models_pass_every_check_on_200_images(
    which: str, dataset: str, failing: tuple[str, ...], tuned: RobustCLIP
) -> None:
    found = outcomes(examined(tiny() if which == "unmodified" else tuned, 200, dataset))
    assert found == dict.fromkeys(CHECKS, "passed") | dict.fromkeys(failing, "failed")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("what", BROKEN)
def test_broken_models_fail_their_checks_on_200_images(what: str, tuned: RobustCLIP) -> None:
    broken, names = BROKEN[what]
    found = outcomes(examined(tuned, 200), broken)
    assert {name: found[name] for name in names} == dict.fromkeys(names, "failed")


def test_every_check_has_its_section() -> None:
    page = PAGE.read_text()
    assert re.findall(r"^## ([a-z0-9-]+)$", page, flags=re.M) == list(CHECKS)
    for section in re.split(r"^## ", page, flags=re.M)[1 : len(CHECKS) + 1]:
        for part in ("**Raised if**", "**Why it matters**", "**What to do**"):
            assert section.count(part) == 1, section.split("\n", 1)[0]
