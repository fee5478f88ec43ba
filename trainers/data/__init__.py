"""The datasets: one table, loaded at most once a process. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from trainers.data.base import DatasetEntry, Images, ImageSet, duplicate_prompts, safe_name
from trainers.data.drawn.datasets import TINY_DATASETS
from trainers.data.folder import FOLDER_PREFIX, folder_entry
from trainers.data.stored import load_stored, why_not_ready
from trainers.data.table import FILE_DATASETS, ZERO_SHOT_15
from trainers.errors import UserError, lookup
from trainers.table import Table

__all__ = [
    "DATASETS", "FOLDER_PREFIX", "ZERO_SHOT_15", "DatasetEntry", "ImageSet", "Images", "dataset_entry",
    "duplicate_prompts", "load_dataset", "not_ready", "safe_name",
]  # fmt: skip


def _wrong(name: str, row: object) -> str:
    if not isinstance(row, DatasetEntry):
        return "must be a trainers.data.DatasetEntry"
    return "" if row.name == name else f"its name must be {name!r}, not {row.name!r}"


DATASETS: Table[DatasetEntry] = Table("dataset", "agft.datasets", {**TINY_DATASETS, **FILE_DATASETS}, _wrong)

_LOADED: dict[str, ImageSet] = {}


def dataset_entry(name: str, path: str) -> DatasetEntry:
    """The table's row called `name`, or one made for the image folder of `folder:DIRECTORY`.

    `path` is what the error names.
    """
    return folder_entry(name, path) if name.startswith(FOLDER_PREFIX) else lookup(DATASETS, name, path=path)


def load_dataset(name: str, path: str = "data.train") -> ImageSet:
    """The dataset called `name`, or the image folder of `folder:DIRECTORY`; `path` is named in the error."""
    if name not in _LOADED:
        entry = dataset_entry(name, path)
        _LOADED[name] = load_stored(entry, path) if entry.load is None else entry.load()
    return _LOADED[name]


def not_ready(names: Mapping[str, str]) -> list[str]:
    """What must be done before these sets (path -> name) can be loaded here, one sentence each."""
    return [problem for path, name in names.items() if (problem := _problem(path, name)) is not None]


def _problem(path: str, name: str) -> str | None:
    try:
        reason = why_not_ready(dataset_entry(name, path))
    except UserError as error:
        return str(error)
    return reason and f"{path}: {reason}"
