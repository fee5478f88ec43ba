"""Image folders: one sub-folder a class, as torchvision's ImageFolder has it."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from trainers.data.base import ImageSet
from trainers.errors import UserError

__all__ = ["load_folder"]

IMAGE_SIZE = 224
SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".webp"}
TEMPLATE = "This is a photo of a {}."


@cache
def load_folder(name: str, path: str) -> ImageSet:
    """The images of `folder:DIRECTORY/<class>/*`, in memory.

    RGB first, then the short side to 224 (bicubic, antialiased) and a centre crop (official code: converts after the
    resize, which spoils palette images). Classes are the folders in alphabetical order, `_` and `-` read as spaces.
    """
    import numpy as np
    import torch
    from PIL import Image, ImageOps

    directory = Path(name.partition(":")[2]).expanduser()
    if not directory.is_dir():
        raise UserError(f"{path}: {name!r}: no such folder")
    folders = sorted(folder for folder in directory.iterdir() if folder.is_dir() and not folder.name.startswith("."))
    files = [
        (file, label)
        for label, folder in enumerate(folders)
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in SUFFIXES
    ]
    if len(folders) < 2 or not files:
        raise UserError(f"{path}: {name!r}: expected one sub-folder with images for each of two or more classes")
    images = torch.empty((len(files), 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    for row, (file, _) in enumerate(files):
        try:
            with Image.open(file) as opened:
                fitted = ImageOps.fit(opened.convert("RGB"), (IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC)
        except OSError as error:
            raise UserError(f"{path}: {file}: not a readable image ({error})") from error
        images[row] = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
    return ImageSet(
        name=name,
        images=images,
        labels=torch.tensor([label for _, label in files]),
        classes=tuple(folder.name.replace("_", " ").replace("-", " ") for folder in folders),
        templates=(TEMPLATE,),
    )
