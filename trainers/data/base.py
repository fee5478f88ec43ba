"""What a dataset is to the rest of the package: labelled uint8 images with class names and prompt templates."""

from __future__ import annotations

import hashlib
import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import ftfy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


Resolution = Literal["224", "native"]


class Images(Protocol):
    """uint8 [N, 3, H, W] (RGB): a tensor, or what gathers rows from the files of a prepared set."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor: ...


@dataclass(frozen=True)
class ImageSet:
    """`images` uint8 [N, 3, H, W] (RGB), indexed by int64 tensors; `labels` int64 [N] in [0, num_classes)."""

    name: str
    images: Images
    labels: Tensor
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    digests: NDArray[np.uint8] | None = None  # [N, 32], SHA-256 of every image, where the set was prepared

    def __len__(self) -> int:
        return len(self.labels)

    def prompts(self) -> list[list[str]]:
        """For every class, one sentence per template."""
        return [[template.format(name) for template in self.templates] for name in self.classes]

    def image_hashes(self) -> list[str]:
        """SHA-256 of every image's pixels, for proving that two sets share no image."""
        if self.digests is not None:
            return [row.tobytes().hex() for row in self.digests]
        return [hashlib.sha256(self.images[row].numpy().tobytes()).hexdigest() for row in range(len(self))]

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the images' SHA-256s, labels, class names and templates, prepared or decoded."""
        digest = hashlib.sha256(repr((self.classes, self.templates, tuple(self.images.shape))).encode())
        for image in self.image_hashes():
            digest.update(bytes.fromhex(image))
        digest.update(self.labels.long().numpy().tobytes())
        return digest.hexdigest()


def duplicate_prompts(image_set: ImageSet) -> list[tuple[int, ...]]:
    """Classes that no classifier can tell apart, see `alike`."""
    return alike(image_set.classes, image_set.templates)


# What CLIP's tokenizer takes apart. It lower-cases, mends Unicode (of two ways to write `é` it makes one), reads HTML's
# `&amp;` as `&`, and spaces between these are nothing to it.
WORDS = re.compile(r"'s|'t|'re|'ve|'m|'ll|'d|[^\W\d_]+|\d|(?:[^\w\s]|_)+", re.IGNORECASE)


def alike(classes: Sequence[str], templates: Sequence[str]) -> list[tuple[int, ...]]:
    """Groups of labels whose prompts are all the same to CLIP, see `WORDS`.

    Their logits are equal, so all but one class of a group are (almost) never predicted.
    """
    groups: dict[tuple[tuple[str, ...], ...], list[int]] = {}
    for label, name in enumerate(classes):
        groups.setdefault(tuple(_as_read(each.format(name)) for each in templates), []).append(label)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _as_read(prompt: str) -> tuple[str, ...]:
    """By open_clip's SimpleTokenizer, whose import alone takes seconds."""
    return tuple(WORDS.findall(html.unescape(html.unescape(ftfy.fix_text(prompt))).lower()))


PLAIN_NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,79}")
CODED_NAME = re.compile(r".*-[0-9a-f]{16}")


def safe_name(name: str) -> str:
    """A dataset's name as part of a file's or a metric's: one of `A-Z a-z 0-9 _ . -` at most 80 times, nothing else.

    Names of the table stay as they are. Any other, say `folder:/data/my pets`, keeps its readable end and gets 64 bits
    of its SHA-256 (`folder-data-my-pets-` and 16 digits), so that two names never become one: not `a b` and `a-b`, not
    two that differ in case alone where files do not tell case, and none looks like the coded form of another.
    """
    if PLAIN_NAME.fullmatch(name) and not CODED_NAME.fullmatch(name):
        return name
    readable = re.sub(r"[^A-Za-z0-9_.]+", "-", name)[-60:].strip("-._")
    return f"{readable or 'set'}-{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:16]}"


class Pixels(Protocol):
    """uint8 [N, H, W, 3], read where it is indexed."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class RawSet:
    """A dataset as its own files have it, in a fixed order: what to decode, and what it shows."""

    images: Sequence[Path] | Pixels  # image files, or pixels
    labels: Sequence[int]
    classes: tuple[str, ...]
    described_by: tuple[Path, ...] = ()  # the files that say which images these are, their labels and names
    named_by: str = "the dataset's own files"  # where the class names are from


@dataclass(frozen=True)
class Archive:
    """A file that anyone may download, and where what is in it belongs."""

    url: str
    into: str = ""  # folder below that of all datasets
    digest: str = ""  # `md5:...` or `sha256:...`; "" where nobody published one
    inner: str = ""  # what is wanted is another archive, at this path in it

    @property
    def file(self) -> str:
        return self.url.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Files:
    """How a dataset that is not drawn is had, and how its files are read."""

    read: Callable[[Path], RawSet]  # given the folder of all datasets; raises OSError, UserError
    marker: str  # a file or folder below it that is there when the dataset is
    size: int  # pixels of a side of every prepared image
    archives: tuple[Archive, ...] = ()  # what to download; none where that needs a person
    by_hand: tuple[str, ...] = ()  # what that person does, line by line


@dataclass(frozen=True)
class DatasetEntry:
    """A row of the DATASETS table. `load` draws a set; without it the set is read from files (`files`).

    `held_out`: the only classes that it has images of, where it is scored among others, which are trained on; none: it
    shows all its classes.
    """

    name: str
    load: Callable[[], ImageSet] | None
    num_images: int
    num_classes: int
    source: str  # where the images come from, and their licence
    description: str
    split: str = "all"
    names: str = "as drawn"  # how class names are made
    templates: tuple[str, ...] = ()
    resolution: Resolution = "native"
    files: Files | None = None
    held_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()  # what whoever names it should know of its files, though nothing is wrong

    @property
    def kind(self) -> str:
        """How it is had."""
        return "drawn" if self.files is None else "download" if self.files.archives else "by hand"
