"""What a promotion adds to a manifest, measured on a real Ray cluster with weights in real S3."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import storage
from infra.cluster.cluster import connect, disconnect
from infra.services import Services
from study.evaluation.calibration import version_facts
from study.models.card import card_files
from tests.support.shipped import CONFIG, manifest_of, measured
from trainers.data import load_dataset
from trainers.model.pretrained import load_clip
from trainers.model.weights import save_weights
from trainers.schema.training import ModelConfig

pytestmark = pytest.mark.slow


@pytest.fixture
def ray_here(service_environment: Services, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    connect()
    try:
        yield
    finally:
        disconnect()


def test_the_calibration_of_the_unmodified_clip_beside_itself_is_the_same(
    ray_here: None, prefix: str, tmp_path: Path
) -> None:
    model = {"arch": "tiny-clip", "pretrained": "bundled"}
    path = save_weights(tmp_path / "w.safetensors", load_clip(ModelConfig.model_validate(model)))
    stored = storage.put_file(path, f"{prefix}/w.safetensors")
    sets = ("tiny-digits", "tiny-colors")
    manifest = manifest_of(
        config={**CONFIG, "model": model, "data": {"train": "tiny-color-shapes", "dev": ["tiny-shapes"]}},
        confirm={"trial 3": measured(9, 5, sets[1], total=10)}, final={"trial 3": measured(9, 5, sets[0], total=10)},
        measured_with={"protocol": "strict", "samples": 64, "seed": 0, "attack": {"name": "pgd", "steps": 4}},
    )  # fmt: skip
    found = version_facts(manifest, {"uri": stored.uri, "sha256": stored.sha256})
    assert found["inputs"] == {name: load_dataset(name).content_hash for name in sets}
    own, clip = found["calibration"]["model"], found["calibration"]["unmodified"]
    assert own == clip
    assert list(own["datasets"]) == ["tiny-digits"]
    assert own["datasets"]["tiny-digits"]["images"] == 64
    assert "## Calibration" in card_files({**manifest, **found})["README.md"].decode()
    assert os.environ.get("RAY_AUTH_MODE") == "token"
