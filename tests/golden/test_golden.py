"""The numbers of `tests/golden/numbers.json` come out again; `tests/bench/golden.py` says how they are compared."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.bench.golden import ATTACKS, FILE, RUNS, differences, evaluation, same_kind, study, training
from trainers.objectives import METHODS

STORED: dict[str, Any] = json.loads(FILE.read_text())
EXACT = same_kind(STORED["made"])


def found(part: str, key: str, compute: Callable[[str], Any]) -> list[str]:
    """What differs in one entry of the file."""
    numbers = json.loads(json.dumps(compute(key)))
    return list(differences(STORED[part].get(key), numbers, exact=EXACT, path=f"{part}.{key}"))


def test_the_file_has_every_method_and_every_attack_in_each_norm() -> None:
    assert set(STORED["training"]) == set(RUNS) >= set(METHODS)
    assert set(STORED["evaluation"]) == set(ATTACKS)


@pytest.mark.parametrize("run", RUNS)
def test_twenty_updates_have_the_losses_and_end_in_the_weights_of_the_file(run: str) -> None:
    assert not found("training", run, training)


@pytest.mark.parametrize("attack", ATTACKS)
def test_an_attack_fools_the_images_of_the_file(attack: str) -> None:
    assert not found("evaluation", attack, evaluation)


def test_a_study_proposes_and_stops_what_the_file_says() -> None:
    assert not list(differences(STORED["study"], json.loads(json.dumps(study())), exact=EXACT, path="study"))


def test_a_changed_number_is_found_and_named() -> None:
    changed = copy.deepcopy(STORED)
    loss = changed["training"]["agft"]["losses"]["loss"]
    loss[3] *= 1.001
    loss[7] *= 1 + 2**-20
    loss[8] *= 1.01
    changed["training"]["fare"]["weights_sha256"] = "0"
    changed["evaluation"]["pgd linf"]["counts"]["robust"][0] += 1
    changed["evaluation"]["pgd linf"]["counts"]["robust"][1] += 2
    changed["study"][11]["params"]["train.optimizer.lr"] *= 1 + 2**-50
    changed["study"][12]["verdicts"]["epoch 3"][0] = "wait"
    del changed["training"]["tecoa"]["losses"]["label"]
    loose = [
        "training.agft.losses.loss[3]", "training.agft.losses.loss[8]", "training.tecoa.losses.label",
        "evaluation.pgd linf.counts.robust[1]",
        "study[11].params.train.optimizer.lr", "study[12].verdicts.epoch 3[0]",
    ]  # fmt: skip
    finer = ["training.agft.losses.loss[7]", "training.fare.weights_sha256", "evaluation.pgd linf.counts.robust[0]"]
    for exact, expected in ((False, loose), (True, loose + finer)):
        lines = [line for part in ("training", "evaluation", "study")
                 for line in differences(STORED[part], changed[part], exact=exact, path=part)]  # fmt: skip
        assert sorted(line.partition(": ")[0] for line in lines) == sorted(expected)
    assert not list(differences(STORED, copy.deepcopy(STORED), exact=True, path=""))
