"""The datasets: one table, loaded at most once a process. Importing this imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from trainers.data.base import DatasetEntry, Images, ImageSet, duplicate_prompts, safe_name
from trainers.data.corrupted.entries import MADE, OWN, base_of, made_entry, own_entry
from trainers.data.drawn.datasets import TINY_DATASETS
from trainers.data.folder import FOLDER_PREFIX, folder_entry
from trainers.data.stored import folder_faults, load_stored, why_not_ready
from trainers.data.table import FILE_DATASETS, ZERO_SHOT_15
from trainers.errors import UserError, lookup
from trainers.table import Table

__all__ = [
    "DATASETS", "FOLDER_PREFIX", "PREFIXES", "ZERO_SHOT_15", "DatasetEntry", "ImageSet", "Images", "dataset_entry",
    "duplicate_prompts", "load_dataset", "not_ready", "remarks", "safe_name",
]  # fmt: skip


def _wrong(name: str, row: object) -> str:
    if not isinstance(row, DatasetEntry):
        return "must be a trainers.data.DatasetEntry"
    return "" if row.name == name else f"its name must be {name!r}, not {row.name!r}"


DATASETS: Table[DatasetEntry] = Table("dataset", "agft.datasets", {**TINY_DATASETS, **FILE_DATASETS}, _wrong)

PREFIXES = (FOLDER_PREFIX, OWN, MADE)
"""How the names of sets begin that are in no table: a row is made of the name."""

_LOADED: dict[str, ImageSet] = {}


def dataset_entry(name: str, path: str) -> DatasetEntry:
    """The table's row called `name`, or one made for `folder:DIRECTORY` or a corrupted set.

    `path` is what the error names.
    """
    if name.startswith(FOLDER_PREFIX):
        return folder_entry(name, path)
    if name.startswith(OWN):
        return own_entry(name, path)
    if name.startswith(MADE):
        return made_entry(name, path, dataset_entry, load_dataset)
    return lookup(DATASETS, name, path=path)


def load_dataset(name: str, path: str = "data.train") -> ImageSet:
    """The dataset called `name`, see `dataset_entry`; `path` is named in the error."""
    if name not in _LOADED:
        entry = dataset_entry(name, path)
        _LOADED[name] = load_stored(entry, path) if entry.load is None else entry.load()
    return _LOADED[name]


def remarks(names: Mapping[str, str]) -> list[str]:
    """What to know of the files of these sets (path -> name), though nothing is wrong; of those that are here."""
    found = []
    for path, name in names.items():
        with suppress(UserError):  # `not_ready` says it
            found += [f"{path}: {text}" for text in dataset_entry(name, path).remarks]
    return found


def not_ready(names: Mapping[str, str]) -> list[str]:
    """What must be done before these sets (path -> name) can be loaded here, one sentence each."""
    return [problem for path, name in names.items() if (problem := _problem(path, name)) is not None]


def _problem(path: str, name: str) -> str | None:
    try:
        if name.startswith(MADE):
            dataset_entry(name, path)
            return _problem(path, base_of(name))
        entry = dataset_entry(name, path)
        reason = why_not_ready(entry) or (folder_faults(entry) if name.startswith(FOLDER_PREFIX) else None)
    except UserError as error:
        return str(error)
    return reason and f"{path}: {reason}"
