"""The model card: what a reader is owed is in it, whatever was measured; calibration by closed forms."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from study.evaluation.calibration import calibration, fit_temperature
from study.models.card import card_files
from tests.support.shipped import CONFIG, manifest_of
from trainers.evaluation.record import wilson

SEEDS = {
    "asked": [11, 12], "shipped": "the search's own checkpoint",
    "measured": {"11": {"clean_accuracy": 0.6, "robust_accuracy": 0.41},
                 "12": {"clean_accuracy": 0.6, "robust_accuracy": 0.39}},
    "summary": {"clean_accuracy": {"mean": 0.6, "deviation": 0.01, "n": 2, "low": 0.58, "high": 0.62},
                "robust_accuracy": {"mean": 0.4, "deviation": 0.02, "n": 2, "low": 0.36, "high": 0.44}},
}  # fmt: skip


def labelled(n: int, classes: int, gap: float, *, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits whose softmax says exactly how likely each class is, and labels drawn from it."""
    generator = torch.Generator().manual_seed(seed)
    logits = gap * torch.randn(n, classes, generator=generator)
    labels = torch.multinomial(logits.softmax(1), 1, generator=generator).squeeze(1)
    return logits, labels


def test_the_card_has_every_hyperparameter_and_every_interval():
    manifest = manifest_of()
    card = card_files(manifest)["README.md"].decode()
    for path, value in (("method.scale_ratio", "0.4"), ("train.optimizer.lr", "0.0004"), ("attack.eps", "4/255")):
        assert f"| `{path}` | {value} |" in card
    low, high = wilson(80, 200)
    assert f"40.0 % ({100 * low:.1f} to {100 * high:.1f})" in card
    assert card.count("15.0 %") == 3  # the unmodified CLIP on both sets, and its mean
    for words in (
        "agft pull robust-clip@1",
        "local-dir:",
        "models:/robust-clip@champion",
        "a" * 64,
        "0" * 40,
        "small-other",
    ):
        assert words in card
    for absent in ("## Gates", "## Calibration", "## Seeds", "test bed"):
        assert absent not in card


def test_the_card_says_what_gates_seeds_and_calibration_found():
    own = calibration({"small-dev": labelled(400, 4, 2)}, {"small-a": labelled(400, 4, 2, seed=1)})
    manifest = manifest_of(
        gates=[{"name": "clean floor", "verdict": "failed", "found": "48.0 %", "needed": ">= 50 % | all"}],
        forced="needed for the | talk", created_ms=1764300000000, calibration={"model": own, "unmodified": own},
        seeds=SEEDS, config={**CONFIG, "model": {"arch": "tiny-clip", "pretrained": "bundled"}},
    )  # fmt: skip
    card = card_files(manifest)["README.md"].decode()
    assert "| clean floor | **failed** | 48.0 % | >= 50 % \\| all |" in card
    assert "**Promoted against its gates.** Reason given: needed for the \\| talk" in card
    assert "2025-11-28" in card
    assert f"T = {own['temperature']:.3f}" in card
    assert "| 11 | 60.0 % | 41.0 % |" in card
    assert "| 95 % interval of the mean | 58.0 to 62.0 | 36.0 to 44.0 |" in card
    assert "Protocol strict, PGD-10" in card
    assert "This is a test bed" in card


def test_the_card_says_which_look_it_was_what_was_tried_before_and_what_the_final_sets_said():
    gate = {
        "name": "final floor clean",
        "verdict": "passed",
        "found": "60.0 %",
        "needed": "not for certain below 50.0 %",
    }
    changes: dict[str, Any] = {
        "gates": [gate], "champion_then": 4, "look": {"number": 3, "level": 0.05 / 12, "hypotheses": 3},
        "tried": [{"trial": 7, "reason": "floor clean: 48.0 %, needed >= 50.0 %", "gates": []}],
    }  # fmt: skip
    card = " ".join(card_files(manifest_of(**changes))["README.md"].decode().split())
    assert "Compared with version 4 in look 3 of this model name at confirm sets" in card
    assert "at most 0.42 %, for whichever of 3 hypotheses" in card
    assert "Trial 7 was better there and was refused: floor clean: 48.0 %, needed >= 50.0 %." in card
    assert "They have nothing against it." in card
    vetoed = card_files(manifest_of(**{**changes, "gates": [{**gate, "verdict": "failed"}]}))["README.md"].decode()
    assert "**They veto it: final floor clean.**" in vetoed
    none = card_files(manifest_of(gates=[{**gate, "name": "floor clean"}]))["README.md"].decode()
    assert "The final sets were not asked for a veto." in none
    assert " in look " not in none


@pytest.mark.parametrize("with_calibration", [False, True])
def test_the_figure_is_a_picture_with_something_on_it(with_calibration):
    changes = {}
    if with_calibration:
        own = calibration({"small-dev": labelled(99, 4, 2)}, {"small-a": labelled(99, 4, 2, seed=1)})
        changes = {"calibration": {"model": own, "unmodified": own}}
    picture = Image.open(io.BytesIO(card_files(manifest_of(**changes))["results.png"]))
    assert picture.format == "PNG"
    assert picture.width > (1300 if with_calibration else 900)
    assert np.asarray(picture.convert("L")).std() > 10


@pytest.mark.parametrize("true_scale", [0.25, 1.0, 3.0])
def test_the_fitted_temperature_is_the_one_that_the_labels_were_drawn_at(true_scale):
    logits, labels = labelled(60_000, 5, 1.5)
    assert fit_temperature([(logits / true_scale, labels)]) == pytest.approx(1 / true_scale, rel=0.03)


def test_two_classes_with_one_gap_have_the_temperature_of_their_log_odds():
    gap, right = 4.0, 3  # 3 of 4 are right: the best probability is 3/4, so gap / T = log 3
    logits = torch.tensor([[gap, 0.0]] * 4)
    labels = torch.tensor([0] * right + [1])
    assert fit_temperature([(logits, labels)]) == pytest.approx(gap / math.log(3), rel=1e-6)


def test_calibration_is_perfect_after_the_fit_and_overconfident_before():
    dev, judged = labelled(40_000, 4, 1.5), labelled(40_000, 4, 1.5, seed=1)
    sharper = calibration({"d": (3 * dev[0], dev[1])}, {"j": (3 * judged[0], judged[1])})
    row = sharper["datasets"]["j"]
    assert sharper["temperature"] == pytest.approx(3, rel=0.03)
    assert sharper["calibration_error"] == pytest.approx(row["confidence"] - row["accuracy"], abs=0.002)
    assert sharper["calibration_error"] > 0.1
    assert sharper["calibration_error_at_temperature"] < 0.012
    assert sum(n for n, _, _ in row["bins"]) == 40_000
    total = sum(n * abs(c - a) for n, c, a in row["bins"]) / 40_000
    assert total == pytest.approx(row["calibration_error"], rel=1e-9)


def test_a_temperature_without_images_is_refused():
    with pytest.raises(ValueError, match="images in every set"):
        fit_temperature([(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))])
