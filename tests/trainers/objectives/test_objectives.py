"""The table of methods: what a configuration can name, and what each method says that it needs."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import TypeAdapter, ValidationError

from trainers.objectives import METHODS, MethodConfig


@pytest.mark.parametrize(
    "wrong", [{"logit_scale": 0}, {"scale_ratio": -1}, {"label_weight": -0.1}, {"logit_scal": 1}, {"name": "tacoa"}]
)
def test_a_wrong_field_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(MethodConfig).validate_python({"name": "agft", **wrong})


def test_the_method_table_is_what_a_configuration_can_name() -> None:
    for name, method in METHODS.items():
        parsed = TypeAdapter(MethodConfig).validate_python({"name": name})
        assert type(parsed) is method


def test_the_methods_are_these_six() -> None:
    assert list(METHODS) == ["agft", "tecoa", "pmg-aft", "tga-zsr", "fare", "ucat"]


@pytest.mark.parametrize(
    ("name", "teacher", "embeddings"),
    [
        ("agft", False, True),
        ("tecoa", False, False),
        ("pmg-aft", True, False),
        ("tga-zsr", True, False),
        ("fare", False, True),
    ],
)
def test_each_method_says_what_it_needs_of_the_frozen_encoder(name: str, teacher: bool, embeddings: bool) -> None:
    method = METHODS[name]()
    assert (method.needs_teacher, method.needs_clean_embeddings) == (teacher, embeddings)
    assert method.complement_template is None


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("tecoa", "scale_ratio"),
        ("fare", "logit_scale"),
        ("fare", "label_weight"),
        ("pmg-aft", "attention_weight"),
        ("tga-zsr", "kl_reduction"),
    ],
)
def test_a_field_of_another_method_is_refused(name: str, field: str) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        TypeAdapter(MethodConfig).validate_python({"name": name, field: 1})


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("pmg-aft", {"adversarial_weight": -1}),
        ("pmg-aft", {"kl_reduction": "mean"}),
        ("pmg-aft", {"normalisation": "none"}),
        ("tga-zsr", {"clean_weight": -0.1}),
        ("tga-zsr", {"token_norm": "none"}),
        ("fare", {"clean_weight": 1}),
        ("tecoa", {"logit_scale": {"of_model": 0}}),
        ("agft", {"class_reduction": "batch_mean"}),
    ],
)
def test_a_value_out_of_range_is_refused(name: str, wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(MethodConfig).validate_python({"name": name, **wrong})


def test_every_field_of_every_method_has_a_description() -> None:
    for method in METHODS.values():
        assert all(field.description for field in method.model_fields.values())
        assert method.__doc__
        assert "Deviations:" in method.__doc__


def test_reading_a_configuration_does_not_import_torch() -> None:
    code = "import sys, trainers.schema.training; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
