"""The manifest of a promoted version: one record, the same after S3's JSON, and every mistake named with its field."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from infra.errors import ServiceError
from study.models.manifest import Gate, Manifest, parse_manifest
from tests.study.models.test_model_card import SEEDS
from tests.support.shipped import manifest_of

ADDRESS = "s3://agft/models/robust-clip/0001/manifest.json"


def stored(**changes: Any) -> dict[str, Any]:
    """As JSON brings it back."""
    return dict(json.loads(json.dumps(manifest_of().record()))) | changes


def test_what_comes_back_is_what_was_put() -> None:
    gate = Gate("floor clean", "failed", "48.0 %", ">= 50 %", {"value": 0.48})
    manifest = manifest_of(gates=[gate], seeds=SEEDS, forced="the talk")
    back = parse_manifest(json.loads(json.dumps(manifest.record())), ADDRESS)
    assert back == manifest
    assert isinstance(back, Manifest)
    assert back.failed_gates == ["floor clean"]
    assert back.key == f"s3://agft/models/robust-clip/0001#{'a' * 64}"
    assert back.own("final")["robust_accuracy"] == 0.4
    assert back.unmodified("confirm")["clean_accuracy"] == 0.6


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"format": 2}, "format = '2'|format = 2"),
        ({"weights": {"uri": "s3://a/b", "bytes": 1}}, r"weights\.sha256: is missing"),
        ({"weights": {"uri": "s3://a/b", "sha256": "0" * 63, "bytes": 1}}, r"weights\.sha256 = '0{63}'"),
        ({"trial": "three"}, r"trial = 'three'"),
        ({"fianl": {}}, r"fianl: no such field; nearest: final"),
        ({"final": {}}, r"final\.trial 3: its accuracies are missing"),
        ({"gates": [{"name": "a", "verdict": "perhaps", "found": "", "needed": ""}]}, r"gates\.0\.verdict = 'perhaps'"),
    ],
)
def test_a_malformed_manifest_is_one_message_with_address_and_field(changed: dict[str, Any], said: str) -> None:
    with pytest.raises(ServiceError, match=said) as error:
        parse_manifest(stored(**changed), ADDRESS)
    assert str(error.value).startswith(f"{ADDRESS}: no manifest of format 1: ")
    assert "\n" not in str(error.value)


def test_of_many_mistakes_the_first_are_told_and_the_rest_counted() -> None:
    with pytest.raises(ServiceError, match=re.escape("model: is missing; study: is missing")) as error:
        parse_manifest({"weights": {}}, ADDRESS)
    assert re.search(r"; and \d+ more$", str(error.value))
