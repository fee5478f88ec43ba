"""What a dataset is to the rest of the package: labelled uint8 images with class names and prompt templates."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["DatasetEntry", "ImageSet"]


@dataclass(frozen=True)
class ImageSet:
    """Images in memory. `images` uint8 [N, 3, H, W] (RGB), `labels` int64 [N] in [0, num_classes)."""

    name: str
    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    templates: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.labels)

    def prompts(self) -> list[list[str]]:
        """For every class, one sentence per template."""
        return [[template.format(name) for template in self.templates] for name in self.classes]

    def image_hashes(self) -> list[str]:
        """SHA-256 of every image's pixels, for proving that two sets share no image."""
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.images]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over images, labels, class names and templates."""
        digest = hashlib.sha256(repr((self.classes, self.templates, tuple(self.images.shape))).encode())
        digest.update(self.images.contiguous().numpy().tobytes())
        digest.update(self.labels.long().numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class DatasetEntry:
    """A row of the DATASETS table. `load` is called at most once a process; it may draw, read or decode."""

    name: str
    load: Callable[[], ImageSet]
    num_images: int
    num_classes: int
    source: str  # where the images come from, and their licence
    description: str
