"""The settings of evaluation attacks: what they import, and what they are called."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any, get_args

from pydantic.fields import FieldInfo

from trainers.schema.attacks import (
    APGD,
    APGDCE,
    APGDDLR,
    APGDT,
    CW,
    EVAL_ATTACKS,
    FGSM,
    PGD,
    AAAgft,
    AutoAttack,
    Ensemble,
    Square,
    Transfer,
)
from trainers.schema.units import OfEps


def test_the_parameters_import_no_torch() -> None:
    code = "import sys, trainers.schema.attacks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_label_names_the_attack_its_steps_and_what_is_not_the_default() -> None:
    expected = {
        "fgsm": FGSM(),
        "fgsm-least-likely": FGSM(target="least-likely"),
        "pgd-20": PGD(),
        "pgd-100x5-random": PGD(steps=100, restarts=5, target="random"),
        "pgd-20-step-size-1eps": PGD(step_size=OfEps(of_eps=1.0)),
        "pgd-20-step-size-0p01-random-start-false": PGD(step_size=0.01, random_start=False),
        "cw-20-confidence-1em05": CW(confidence=1e-5),
        "apgd-ce-100": APGDCE(),
        "apgd-100": APGD(),
        "apgd-t-100-targets-3": APGDT(targets=3),
        "square-5000": Square(),
        "transfer-pgd-20": Transfer(),
        "transfer-mi-fgsm-3": Transfer(attack="mi-fgsm", settings={"steps": 3}),
        "ensemble-100-queries-200": Ensemble(queries=200),
        "aa-agft-10": AAAgft(),
        "autoattack": AutoAttack(),
    }
    for label, parameters in expected.items():
        assert parameters.label == label
        assert re.fullmatch("[a-z0-9-]+", label)


def test_attacks_made_of_others_hand_their_settings_on() -> None:
    first, last = APGDCE(steps=7), Square(queries=3)
    expected = {2: (first,), 3: (first, APGDDLR(steps=7)), 10: (first, APGDT(steps=7, targets=4))}
    for number, parts in expected.items():
        assert APGD(steps=7, targets=4).components(norm="l2", num_classes=number) == parts
        ensemble = Ensemble(steps=7, targets=4, queries=3)
        assert ensemble.components(norm="l2", num_classes=number) == parts
        assert ensemble.components(norm="linf", num_classes=number) == (*parts, last)
    assert AAAgft(steps=7).components(norm="linf", num_classes=3) == expected[3]


def test_any_setting_but_the_default_shows_in_the_label() -> None:
    numbers = {int: 7, float: 0.3, bool: False, OfEps: OfEps(of_eps=2.0)}

    def other(field: FieldInfo) -> Any:
        """Not the default: of words another one that is allowed."""
        if isinstance(field.default, str):
            return next(word for word in get_args(field.annotation) if word != field.default)
        return numbers[type(field.default)]

    for name, row in EVAL_ATTACKS.items():
        if name != "transfer":
            settings = {key: field for key, field in row.model_fields.items() if key != "name"}
            variants = [row(), *(row(**{key: other(field)}) for key, field in settings.items())]
            assert len({variant.label for variant in variants}) == len(variants), name
