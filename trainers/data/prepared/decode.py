"""From an image file to the pixels that models see. Imports no torch: it runs in processes of its own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


SIDE = 224
TRANSFORMS = {
    "224": "RGB, short side to 224 (Pillow, bilinear, antialiased), centre crop 224 x 224, uint8",
    "native": "RGB, uint8",
}


def fit(image: Image, resolution: str) -> NDArray[np.uint8]:
    """uint8 [3, H, W]: RGB first, then for "224" torchvision's Resize(224) and CenterCrop(224), on its Pillow path.

    Official AGFT: converts to RGB after the resize, which resizes palette images by nearest neighbour; here before.
    Orientation in EXIF is ignored, as torchvision does.
    """
    import numpy as np
    from PIL.Image import Resampling

    image = image.convert("RGB")
    if resolution == "224":
        width, height = image.size
        short = min(width, height)
        size = tuple(SIDE if side == short else int(SIDE * side / short) for side in (width, height))
        if size != (width, height):
            image = image.resize(size, Resampling.BILINEAR)  # type: ignore[arg-type]
        left, top = (round((side - SIDE) / 2.0) for side in size)
        image = image.crop((left, top, left + SIDE, top + SIDE))
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def decode(item: Path | NDArray[np.uint8], resolution: str, size: int) -> NDArray[np.uint8]:
    """uint8 [3, size, size] of an image file, or of pixels [H, W, 3]; `UserError` names a file that is no image."""
    from PIL import Image

    name = f"{item}: " if isinstance(item, Path) else ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd EXIF data, in a few of ImageNet's files
            if isinstance(item, Path):
                with Image.open(item) as opened:
                    found = fit(opened, resolution)
            else:
                found = fit(Image.fromarray(item), resolution)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{name}not a readable image ({error})") from error
    if found.shape != (3, size, size):
        raise UserError(f"{name}{found.shape[2]} x {found.shape[1]} pixels, not {size} x {size}")
    return found
