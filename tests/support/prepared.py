"""A dataset that is large enough for several parts and processes, and what its prepared set holds."""

from __future__ import annotations

import hashlib
from pathlib import Path

from PIL import Image

from tests.support.miniatures import row
from trainers.data import DatasetEntry

__all__ = ["MANY", "contents", "copied", "textures"]

MANY = 300  # three parts of 224 x 224 pixels, and more than one process bothers with


def textures(root: Path, number: int) -> DatasetEntry:
    """A DTD of so many images, 120 x 90, every one its own colour."""
    base = root / "dtd/dtd"
    (base / "labels").mkdir(parents=True)
    names = [f"{'banded' if i % 3 else 'woven'}/{i:04d}.png" for i in range(number)]
    for i, name in enumerate(names):
        file = base / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (120, 90), (i % 256, i // 256, 7)).save(file)
    (base / "labels/test1.txt").write_text("\n".join(names))
    return row("dtd", number, 2)


def contents(folder: Path) -> dict[str, str]:
    """SHA-256 by file."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def copied(folder: Path, place: Path) -> Path:
    """A copy that may be damaged."""
    copy = place / folder.name
    copy.mkdir(parents=True)
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy
