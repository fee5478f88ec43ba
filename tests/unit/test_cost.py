"""What a suite costs, by hand and by counting."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from study.cli import main
from study.cost import FOOLED_PASSES, Assumed, Rate, cost_of, cost_text, training_passes
from study.studyfile import load_study
from tests.small import image_set, small_clip
from trainers.evaluate import measure
from trainers.model import RobustCLIP
from trainers.scorer import Scorer
from trainers.suite import SUITES, AttackAt, Suite

RECIPE = Path("study/recipes/demo.yaml")


def suite(protocol: str = "strict", attack: str = "pgd", **settings: object) -> Suite:
    entry = {"attack": {"name": attack, **settings}, "eps": ["2/255", "4/255"], "samples": 100}
    return Suite.model_validate({"name": "s", "datasets": ["tiny-digits"], "attacks": [entry], "protocol": protocol})


def test_pgd_by_hand() -> None:
    """100 images, two radii: one look at the clean image, 20 steps with gradient, one last look."""
    found = cost_of(suite(), Assumed(clean=0.8, robust=0.5), None)["total"]
    assert found["at_most"] == {"forward": 100 + 200 * 21, "backward": 200 * 20}
    fooled = 0.3 * 200 * FOOLED_PASSES
    assert found["expected"] == {"forward": 300 + 0.5 * 200 * 21 + fooled, "backward": 0.5 * 200 * 20 + fooled}


def test_protocol_paper_skips_nothing() -> None:
    found = cost_of(suite("paper"), Assumed(), None)["total"]
    assert found["expected"] == found["at_most"]


@pytest.mark.parametrize("protocol", ["strict", "paper"])
def test_what_the_engine_computes_lies_within(protocol: str) -> None:
    model, images = RobustCLIP(small_clip()), image_set("set", 64)
    with torch.no_grad():
        embeddings = model.unit(model.embed(images.images[:].float() / 255))
    classes = model.unit(torch.stack([embeddings[images.labels == label].mean(0) for label in range(4)]))
    scorer, entry = Scorer(model, classes), AttackAt.model_validate({"attack": {"name": "pgd"}, "eps": ["4/255"]})
    measure(scorer, images, torch.arange(64), entry, protocol=protocol, batch_size=64)  # type: ignore[arg-type]
    forward, _ = entry.attack.passes(4)
    looked = 64 * (1 + forward)  # and once more at the adversarial images, which belongs to no attack
    assert scorer.rows <= looked + 64
    assert (scorer.rows == looked + 64) == (protocol == "paper")


def test_hours_are_passes_times_seconds() -> None:
    rate = Rate(forward=0.01, both=0.03, where="here")
    found = cost_of(suite("paper"), Assumed(), rate)["total"]
    assert found["hours_at_most"] == pytest.approx((300 * 0.01 + 4000 * 0.03) / 3600)
    assert "measured just now" in cost_text(cost_of(suite(), Assumed(), rate))
    assert "hours: not known" in cost_text(cost_of(suite(), Assumed(), None))


def test_full_autoattack_on_all_images_costs_more_than_the_training() -> None:
    """AGFT's fine-tuning: 10 epochs of ImageNet, two attack steps and an update an image."""
    training = 10 * 1_281_167 * (3 + 3)
    final = SUITES["zero-shot-15"][0]
    whole = AttackAt.model_validate({"attack": {"name": "autoattack"}, "eps": ["1/255"]})
    full = cost_of(final.model_copy(update={"attacks": (whole,)}), Assumed(), None)["total"]["expected"]
    usual = cost_of(final, Assumed(), None)["total"]["expected"]
    assert sum(full.values()) > 10 * training
    assert sum(usual.values()) < 0.3 * training


def test_training_passes_are_steps_and_the_update() -> None:
    spec = load_study(RECIPE)
    images = spec.train.samples_per_epoch
    assert images is not None
    each = spec.train.epochs * images * (spec.attack.steps + 1)
    assert training_passes(spec) == {"forward": each, "backward": each}


def invoked(*arguments: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(main, ["plan", *arguments])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_plans_a_study_a_suite_or_both() -> None:
    code, text, _ = invoked("--suite", "tiny")
    assert code == 0
    assert "suite tiny, protocol strict" in text
    code, text, _ = invoked(str(RECIPE), "--suite", "tiny")
    assert "study demo" in text
    assert "training: one full trial of the study is" in text
    code, text, _ = invoked("--suite", "zero-shot-15", "--json")
    assert len(json.loads(text)["suite"]["rows"]) == 30
    assert max(len(line) for line in invoked("--suite", "zero-shot-15")[1].splitlines()) <= 120


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "FILE or --suite: one is required"),
        (["--suite", "tinny"], "'tinny'"),
        (["--suite", "tiny", "--clean", "0.3"], "--robust: 0.4 is more than --clean 0.3"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: list[str], words: str) -> None:
    code, _, errors = invoked(*arguments)
    assert code == 2
    assert words in errors
    assert len(errors.splitlines()) == 1
