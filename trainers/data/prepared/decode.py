"""From an image file to the pixels that models see. Imports no torch: it runs in processes of its own."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from trainers.data.pictures import FORMATS, what_it_is
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
LARGEST_BYTES = 360_000_000  # that decoding a picture may take: 90 million pixels of an ordinary JPEG
LONGEST = 100  # times the short side
# Bytes a pixel while a file is decoded; what is not RGB needs as many again for its RGB.
RGB_BYTES, CODEC_BYTES, PROGRESSIVE_BYTES = 4, {"AVIF": 8, "JPEG2000": 12, "WEBP": 12}, 6
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0  # a tag of TIFF
BLOCK = 1 << 20  # values of 16 or 32 bits that are scaled together


def fit(image: Image, resolution: str) -> NDArray[np.uint8]:
    """uint8 [3, H, W]: RGB first, then for "224" torchvision's Resize(224) and CenterCrop(224), on its Pillow path.

    Official AGFT: converts to RGB after the resize, which resizes palette images by nearest neighbour; here before.
    Orientation in EXIF and transparency are ignored, and of several pictures in a file the first is read, as by
    torchvision; grey of more than 8 bits is scaled to 8 (`eight_bits`), where torchvision cuts it off at 255.
    """
    import numpy as np
    from PIL.Image import Resampling

    image = eight_bits(image)
    if image.mode != "RGB":
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


def eight_bits(image: Image) -> Image:
    """Grey of 16 bits is v * 255 / 65535, rounded; grey of 32 bits has no range of its own, so its values tell.

    Whole numbers: all from 0 to 255, as they are; to 65535, as 16 bits (always, where the file is PPM or PNG, which
    have no other). Floats: all from 0 to 1, times 255; to 255, as they are, rounded. Anything else is a `UserError`.
    A TIFF may say that its zero is white, as X-rays do: Pillow turns such a picture over up to 8 bits alone.
    """
    import numpy as np
    from PIL.Image import fromarray

    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.asarray(image)
    flat = values.reshape(-1)
    low, high = (float(flat.min()), float(flat.max())) if flat.size else (0.0, 0.0)
    if image.mode == "F":
        top = 1.0 if high <= 1 else 255.0
    else:
        sixteen = image.mode != "I" or image.format in ("PPM", "PNG") or high > 255
        top = 65535.0 if sixteen else 255.0
    if not (low >= 0 and high <= top):
        wanted = "0 to 1 or 0 to 255" if image.mode == "F" else "0 to 65535"
        raise UserError(f"grey of 32 bits, from {low:g} to {high:g}; expected {wanted}")
    white_is_zero = getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO
    scaled = np.empty(flat.size, np.uint8)
    for start in range(0, flat.size, BLOCK):
        block = flat[start : start + BLOCK].astype(np.float64)
        scaled[start : start + BLOCK] = np.rint((top - block if white_is_zero else block) * (255.0 / top))
    return fromarray(scaled.reshape(values.shape))


def refuse_shape(image: Image) -> None:
    """`UserError` for a picture that needs too much memory, or whose short side says nothing; reads only its header."""
    width, height = image.size
    if max(image.size) > LONGEST * min(image.size):
        raise UserError(f"{width:,} x {height:,} pixels: one side at most {LONGEST} times the other")
    each = CODEC_BYTES.get(image.format or "", 0) + RGB_BYTES * (1 if image.mode == "RGB" else 2)
    each += PROGRESSIVE_BYTES if "progressive" in image.info else 0
    if (need := width * height * each) > LARGEST_BYTES:
        raise UserError(f"{width:,} x {height:,} pixels take {need / 1e6:,.0f} MB to decode; "
                        f"at most {LARGEST_BYTES / 1e6:,.0f}: make it smaller")  # fmt: skip


def read_picture(path: Path, resolution: str, *, header_only: bool = False) -> NDArray[np.uint8] | None:
    """uint8 [3, H, W] of a file, or None after a look at its header. Raises whatever Pillow does, and `UserError`."""
    from PIL import Image, PngImagePlugin, UnidentifiedImageError

    PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MB: texts are no pixels, and no reason to fail
    if not path.is_file():
        path.stat()  # FileNotFoundError
        raise UserError(what_it_is(path))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd EXIF data, in a few of ImageNet's files; of many pixels, see below
        try:
            with Image.open(path, formats=tuple(FORMATS)) as opened:
                refuse_shape(opened)
                return None if header_only else fit(opened, resolution)
        except UnidentifiedImageError as error:
            raise UserError(_instead(path)) from error


def _instead(path: Path) -> str:
    """What a file is that Pillow does not know."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "it is empty"
    if head.startswith(b"version https://git-lfs"):
        return "a git-lfs pointer; fetch the file itself: git lfs pull"
    if head.lstrip()[:15].lower().startswith((b"<html", b"<!doctype html")):
        return "a web page"
    return "no picture, or of no format that is read here"


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def fault(path: Path, *, whole: bool) -> str | None:
    """What is wrong with an image file, as far as its header tells, or all of it; None if nothing is."""
    try:
        read_picture(path, "224", header_only=not whole)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything
        return f"{path}: not a readable image ({_line(error)})"
    return None


def decode(item: Path | NDArray[np.uint8], resolution: str, size: int) -> NDArray[np.uint8]:
    """uint8 [3, size, size] of an image file, or of pixels [H, W, 3]; `UserError` names a file that is no image."""
    from PIL import Image

    name = f"{item}: " if isinstance(item, Path) else ""
    try:
        found = read_picture(item, resolution) if isinstance(item, Path) else fit(Image.fromarray(item), resolution)
    except (FileNotFoundError, MemoryError):
        raise
    except Exception as error:  # a damaged file can raise anything
        raise UserError(f"{name}not a readable image ({_line(error)})") from error
    assert found is not None
    if found.shape != (3, size, size):
        raise UserError(f"{name}{found.shape[2]} x {found.shape[1]} pixels, not {size} x {size}")
    return found
