"""Calibration of a real model: the images and the accuracy are those of an evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray

from study.evaluation.calibration import calibration
from study.evaluation.ledger import Ledger
from study.evaluation.place import Folder
from study.evaluation.units import Evaluation
from study.evaluation.work import missing_looks, missing_work
from study.evaluation.worker import EvaluationWorker
from tests.support.small import pgd_suite, small_clip, small_sets
from trainers.evaluation.measure import evaluate_sets
from trainers.evaluation.summary import model_facts
from trainers.model.robust import RobustCLIP
from trainers.model.weights import save_weights

SETS = ("small-dev", "small-other", "small-large")


@small_sets()
def test_a_models_calibration_is_of_the_images_that_its_evaluation_looks_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = small_clip()
    facts = model_facts(clip, RobustCLIP(clip), "model")
    packed = save_weights(tmp_path / "w.safetensors", clip).read_bytes()
    monkeypatch.setattr(ray, "get", lambda reference: reference)  # the worker is here, and so is what it is given
    worker = EvaluationWorker({facts.weights_sha256: packed}, 1, False)
    suite = pgd_suite(*SETS, eps=(0.0,), steps=1, samples=30)
    ledger = Ledger(Evaluation(facts, None, None, suite, "cpu"), Folder(tmp_path / "kept"), print, lambda: None)

    def finish(work: Sequence[Any]) -> int:
        for each in work:
            each.keep(getattr(worker, each.job.method)(*each.job.arguments))
        return len(work)

    ledger.open()
    assert finish(missing_looks([ledger])) == 3
    assert finish(missing_work(ledger, method="logits")) == 3
    assert missing_work(ledger) == []
    again = Ledger(ledger.evaluation, ledger.place, print, lambda: None)
    again.open()
    assert missing_work(again) == [], "what is kept is found by the next one"

    logits = {name: again.logits(name, suite.attacks[0]) for name in SETS}
    found = calibration({"small-dev": logits["small-dev"]}, {name: logits[name] for name in SETS[1:]})
    measured = evaluate_sets(small_clip(), pgd_suite(*SETS, eps=("2/255",), steps=1, samples=30))
    assert list(found["datasets"]) == ["small-other", "small-large"]
    for name, row in found["datasets"].items():
        assert row["images"] == 30
        assert row["accuracy"] == pytest.approx(measured[name].clean_accuracy)
        assert 0 <= row["calibration_error"] <= 1
    assert found["fitted_on"] == ["small-dev"]
    assert found["temperature"] > 1  # random weights at scale 100 are far too sure of themselves
    assert found["calibration_error_at_temperature"] < found["calibration_error"]
