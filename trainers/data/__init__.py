"""The datasets: one table, loaded at most once a process. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.data.base import DatasetEntry, Images, ImageSet, duplicate_prompts
from trainers.data.stored import load_stored, why_not_ready
from trainers.data.table import FILE_DATASETS, ZERO_SHOT_15
from trainers.errors import lookup
from trainers.tiny.datasets import TINY_DATASETS

__all__ = [
    "DATASETS", "ZERO_SHOT_15", "DatasetEntry", "ImageSet", "Images", "duplicate_prompts", "load_dataset", "not_ready",
]  # fmt: skip

DATASETS: Mapping[str, DatasetEntry] = {**TINY_DATASETS, **FILE_DATASETS}

FOLDER_PREFIX = "folder:"
_LOADED: dict[str, ImageSet] = {}


def load_dataset(name: str, path: str = "data.train") -> ImageSet:
    """The dataset called `name`, or the image folder of `folder:DIRECTORY`; `path` is named in the error."""
    if name.startswith(FOLDER_PREFIX):
        from trainers.data.folder import load_folder

        return load_folder(name, path)
    entry = lookup(DATASETS, name, path=path)
    if name not in _LOADED:
        _LOADED[name] = load_stored(entry, path) if entry.load is None else entry.load()
    return _LOADED[name]


def not_ready(names: Mapping[str, str]) -> list[str]:
    """What must be prepared before these sets (path -> name) can be loaded here, one sentence each."""
    known = {path: DATASETS[name] for path, name in names.items() if name in DATASETS}
    return [f"{path}: {reason}" for path, entry in known.items() if (reason := why_not_ready(entry)) is not None]
