"""What every test of training starts from: small sets in place of the real ones, and a small model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.small import small_clip, small_sets
from trainers.model.weights import save_weights


@pytest.fixture(scope="module", autouse=True)
def _sets() -> Iterator[None]:
    with small_sets():
        yield


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_weights(tmp_path_factory.mktemp("start") / "start.safetensors", small_clip())
