"""What every dataset's row must say, and what it must load where it is here."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from trainers.data import DatasetEntry, load_dataset, safe_name
from trainers.data.stored import why_not_ready


def it_says_everything_about_its_set(entry: DatasetEntry) -> None:
    assert safe_name(entry.name) == entry.name
    assert entry.source
    assert entry.description
    assert entry.split
    assert entry.names
    assert entry.num_images >= entry.num_classes >= 2
    assert (entry.load is None) == (entry.files is not None)
    assert len(set(entry.held_out)) == len(entry.held_out) < entry.num_classes
    if entry.files is not None:
        assert all(template.count("{}") == 1 and template.endswith(".") for template in entry.templates)
        assert len(entry.templates) == 1
        assert bool(entry.files.archives) != bool(entry.files.by_hand)
        assert entry.files.size == {"224": 224}.get(entry.resolution, entry.files.size)


def what_it_loads_is_what_it_says(entry: DatasetEntry) -> None:
    if why_not_ready(entry):
        return  # its files are elsewhere: the row is all that can be looked at
    found = entry.load() if entry.load else load_dataset(entry.name)
    assert found.name == entry.name
    assert tuple(found.images.shape)[:2] == (entry.num_images, 3)
    assert found.images[torch.arange(1)].dtype == torch.uint8
    assert len(found.classes) == entry.num_classes == len(set(found.classes))
    assert found.labels.dtype == torch.int64
    there = {found.classes[label] for label in found.labels.tolist()}
    assert there == set(entry.held_out or found.classes)
    assert all(template.count("{}") == 1 for template in found.templates)


def dataset_contract(entry: DatasetEntry) -> dict[str, Callable[[], None]]:
    """The checks by name."""
    checks = (it_says_everything_about_its_set, what_it_loads_is_what_it_says)
    return {check.__name__: partial(check, entry) for check in checks}
