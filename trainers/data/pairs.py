"""Pictures with their captions, as Flickr30k and COCO lay them out: what zero-shot retrieval is measured on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.errors import UserError

CAPTIONS = 5  # of every picture; further ones are left out, as in CLIP's own evaluation


@dataclass(frozen=True)
class Pairs:
    """`images` in the file's order, and of each its captions."""

    name: str
    images: tuple[Path, ...]
    captions: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class PairsEntry:
    """A row of PAIRS: where the set is from, and how its files are read, given the folder of all datasets."""

    source: str
    description: str
    files: str
    read: Callable[[Path], Pairs]


def karpathy(root: Path, folder: str, listed: str, split: str) -> Pairs:
    """Karpathy and Fei-Fei's split file: `images` with `filename`, `split`, `sentences` of `raw` texts.

    COCO's pictures are below `filepath` (val2014).
    """
    path = root / folder / listed
    rows = [row for row in _list(_json(path), "images", path) if row.get("split") == split]
    texts = {
        str(Path(row.get("filepath", "images"), row["filename"])): [each["raw"] for each in row["sentences"]]
        for row in rows
    }
    return _pairs(path, root / folder, texts)


def coco(root: Path, folder: str, listed: str, pictures: str) -> Pairs:
    """COCO's own annotations: `images` with `id` and `file_name`, `annotations` with `image_id` and `caption`."""
    path = root / folder / listed
    content = _json(path)
    names = {row["id"]: str(Path(pictures, row["file_name"])) for row in _list(content, "images", path)}
    texts: dict[str, list[str]] = {name: [] for name in names.values()}
    for row in sorted(_list(content, "annotations", path), key=lambda row: row["id"]):
        if row["image_id"] not in names:
            raise UserError(f"{path}: annotation {row['id']}: image {row['image_id']} is none of its images")
        texts[names[row["image_id"]]].append(row["caption"])
    return _pairs(path, root / folder, texts)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: not a JSON file ({error})") from error


def _list(content: Any, key: str, path: Path) -> list[Any]:
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise UserError(f"{path}: no list {key!r} in it")
    return found


def _pairs(path: Path, folder: Path, texts: Mapping[str, list[str]]) -> Pairs:
    named = {name: tuple(" ".join(text.split()) for text in found)[:CAPTIONS] for name, found in texts.items() if found}
    if not named:
        raise UserError(f"{path}: no picture of the split has a caption")
    missing = [name for name in named if not (folder / name).is_file()]
    if missing:
        raise UserError(f"{folder / missing[0]}: no such file, and {path} names it ({len(missing):,} of {len(named):,} "
                        "pictures are not there)")  # fmt: skip
    return Pairs(path.stem, tuple(folder / name for name in named), tuple(named.values()))


PAIRS: dict[str, PairsEntry] = {
    "flickr30k": PairsEntry(
        "shannon.cs.illinois.edu/DenotationGraph, on request; for research", "Flickr30k, Karpathy's 1,000 test images",
        "flickr30k/images/*.jpg, flickr30k/dataset_flickr30k.json (Karpathy's splits)",
        lambda root: karpathy(root, "flickr30k", "dataset_flickr30k.json", "test"),
    ),
    "coco-karpathy": PairsEntry(
        "cocodataset.org; CC BY 4.0", "COCO, Karpathy's 5,000 test images",
        "coco/val2014/*.jpg, coco/dataset_coco.json (Karpathy's splits)",
        lambda root: karpathy(root, "coco", "dataset_coco.json", "test"),
    ),
    "coco-val2017": PairsEntry(
        "cocodataset.org; CC BY 4.0", "COCO's validation images of 2017",
        "coco/val2017/*.jpg, coco/annotations/captions_val2017.json",
        lambda root: coco(root, "coco", "annotations/captions_val2017.json", "val2017"),
    ),
}  # fmt: skip
"""Sets of pictures with captions, by name."""
