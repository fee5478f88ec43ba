"""Calibration of a real model: the images and the accuracy are those of an evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from study.evaluation.calibration import _of_model
from tests.support.small import small_clip, use_small_sets
from trainers import data
from trainers.evaluation.measure import evaluate_sets
from trainers.model.weights import save_weights
from trainers.schema.training import EvalAttack, EvalConfig


def test_a_models_calibration_is_of_the_images_that_its_evaluation_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "DATASETS", data.DATASETS)
    use_small_sets()
    path = save_weights(tmp_path / "w.safetensors", small_clip())
    config = EvalConfig(attack=EvalAttack(eps=("2/255",), steps=1), samples=30)
    model = {"arch": "small-clip", "pretrained": str(path)}
    found = _of_model(None, model, ["small-dev"], ["small-other", "small-large"], 30, config.seed)
    measured = evaluate_sets(small_clip(), ["small-other", "small-large"], config)
    assert list(found["datasets"]) == ["small-other", "small-large"]
    for name, row in found["datasets"].items():
        assert row["images"] == 30
        assert row["accuracy"] == pytest.approx(measured[name].clean_accuracy)
        assert 0 <= row["calibration_error"] <= 1
    assert found["fitted_on"] == ["small-dev"]
    assert found["temperature"] > 1  # random weights at scale 100 are far too sure of themselves
    assert found["calibration_error_at_temperature"] < found["calibration_error"]
