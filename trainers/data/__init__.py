"""The datasets: one table, loaded at most once a process. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from trainers.data.base import DatasetEntry, ImageSet
from trainers.errors import lookup
from trainers.tiny.datasets import TINY_DATASETS

__all__ = ["DATASETS", "DatasetEntry", "ImageSet", "load_dataset"]

DATASETS: Mapping[str, DatasetEntry] = {**TINY_DATASETS}

FOLDER_PREFIX = "folder:"


def load_dataset(name: str, path: str = "data.train") -> ImageSet:
    """The dataset called `name`, or the image folder of `folder:DIRECTORY`; `path` is named in the error."""
    if name.startswith(FOLDER_PREFIX):
        from trainers.data.folder import load_folder

        return load_folder(name, path)
    lookup(DATASETS, name, path=path)
    return _load(name)


@cache
def _load(name: str) -> ImageSet:
    return DATASETS[name].load()
