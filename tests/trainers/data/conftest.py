"""A dataset of 300 images and its prepared set, made once for the tests of both."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.prepared import MANY, textures
from trainers.data import DatasetEntry
from trainers.data.prepared.prepare import prepare


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetEntry, Path]:
    root = tmp_path_factory.mktemp("many")
    return textures(root, MANY), root


@pytest.fixture(scope="session")
def whole(many: tuple[DatasetEntry, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of `many`, prepared in one process without a disturbance."""
    entry, root = many
    place = tmp_path_factory.mktemp("whole")
    prepare(entry, root, place, workers=1)
    return place / "dtd"
