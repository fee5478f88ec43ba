"""Corrupted sets by name: `imagenet-c:CORRUPTION/SEVERITY`, from its files, and `corrupted:CORRUPTION/SEVERITY:SET`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from trainers.data import layouts
from trainers.data.base import DatasetEntry, Files, ImageSet
from trainers.data.corrupted.functions import CORRUPTIONS, SEVERITIES, corrupt
from trainers.data.table import SYNONYM, THIS_PHOTO
from trainers.errors import UnknownName, nearest

if TYPE_CHECKING:
    from torch import Tensor

OWN, MADE = "imagenet-c:", "corrupted:"
FURTHER = ("glass_blur", "motion_blur", "snow", "frost", "fog", "elastic_transform", "spatter")  # in its files alone
ARCHIVES = {
    "noise": ("gaussian_noise", "shot_noise", "impulse_noise"),
    "blur": ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    "weather": ("snow", "frost", "fog", "brightness"),
    "digital": ("contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    "extra": ("speckle_noise", "gaussian_blur", "spatter", "saturate"),
}
USUAL = tuple(name for group in ("noise", "blur", "weather", "digital") for name in ARCHIVES[group])
"""The fifteen that ImageNet-C's mean is over."""


def own_entry(name: str, path: str) -> DatasetEntry:
    """A row like those of the table for one corruption at one severity of ImageNet-C's own files."""
    corruption, severity = _which(name.removeprefix(OWN), path, name, (*CORRUPTIONS, *FURTHER))
    archive = next(archive for archive, names in ARCHIVES.items() if corruption in names)
    folder = f"imagenet-c/{corruption}/{severity}"
    by_hand = (
        f"1. download {archive}.tar from https://zenodo.org/records/2235448 and unpack it in {{root}}/imagenet-c",
        f"2. {{root}}/{folder}/<WordNet number>/*.JPEG must be there now, else move the folders",
    )
    return DatasetEntry(
        name, None, 50_000, 1000, "zenodo.org/records/2235448; CC BY 4.0",
        f"ImageNet's validation images under {corruption} of severity {severity}", "val", SYNONYM, (THIS_PHOTO,), "224",
        Files(partial(layouts.wnid_folders, folder=folder), folder, 224, by_hand=by_hand),
    )  # fmt: skip


def base_of(name: str) -> str:
    """The set that `corrupted:CORRUPTION/SEVERITY:SET` is made of."""
    return name.split(":", 2)[-1]


def made_entry(
    name: str, path: str, entry_of: Callable[[str, str], DatasetEntry], load: Callable[[str, str], ImageSet]
) -> DatasetEntry:
    """A row for any other set, corrupted; `entry_of` and `load` find that set."""
    which, _, base = name.removeprefix(MADE).partition(":")
    corruption, severity = _which(which, path, name, tuple(CORRUPTIONS))
    below = entry_of(base, path)
    return dataclasses.replace(
        below,
        name=name,
        load=lambda: corrupted_set(name, load(base, path), corruption, severity),
        files=None,
        description=f"{below.description}, under {corruption} of severity {severity}",
    )


def _which(text: str, path: str, name: str, known: tuple[str, ...]) -> tuple[str, int]:
    corruption, _, severity = text.partition("/")
    if corruption not in known:
        close = nearest(corruption, known)
        raise UnknownName(f"{path}: {name!r}: no corruption {corruption!r}; {'nearest' if close else 'known'}: "
                          f"{', '.join(close or known)}")  # fmt: skip
    if severity not in {str(number) for number in range(1, SEVERITIES + 1)}:
        raise UnknownName(f"{path}: {name!r}: a severity is a number from 1 to {SEVERITIES}, as in {corruption}/3")
    return corruption, int(severity)


def corrupted_set(name: str, base: ImageSet, corruption: str, severity: int) -> ImageSet:
    """`base` with every image corrupted when it is looked at; labels, classes and prompts stay."""
    images = CorruptedImages(base, corruption, severity)
    return dataclasses.replace(base, name=name, images=images, digests=None)


@dataclass(frozen=True)
class CorruptedImages:
    """uint8 [N, 3, H, W], corrupted row by row; a row's noise is keyed by its place in the set."""

    base: ImageSet
    corruption: str
    severity: int

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.base.images.shape)

    def __len__(self) -> int:
        return len(self.base)

    def __getitem__(self, index: Any, /) -> Tensor:
        import torch

        rows, images = torch.arange(len(self))[index], self.base.images[index]
        if rows.ndim == 0:
            return self._one(images, int(rows))
        return (
            torch.stack([self._one(*pair) for pair in zip(images, rows.tolist(), strict=True)]) if len(rows) else images
        )

    def _one(self, image: Tensor, row: int) -> Tensor:
        import torch

        pixels = corrupt(image.permute(1, 2, 0).numpy(), self.corruption, self.severity, row)
        return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()
