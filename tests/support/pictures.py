"""Pictures in every format and mode that people have them in, as the bytes of files; and folders of them."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

# suffix -> modes, or modes with what `Image.save` is told
KINDS: dict[str, tuple[tuple[str, dict[str, Any]], ...]] = {
    ".png": tuple((mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ".apng": (("RGB", {"format": "PNG", "append": True}),),
    ".jpg": (("L", {}), ("RGB", {}), ("CMYK", {}), ("RGB", {"progressive": True}), ("RGB", {"exif": True})),
    ".jfif": (("RGB", {"format": "JPEG"}),),
    ".mpo": (("RGB", {"append": True}),),
    ".gif": (("L", {}), ("P", {}), ("P", {"append": True}), ("P", {"transparency": 0})),
    ".bmp": tuple((mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
    ".dib": (("RGB", {}),),
    ".tif": tuple((mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F")),
    ".tiff": (("RGB", {"compression": "tiff_lzw"}), ("I;16", {"compression": "tiff_adobe_deflate"}),
              ("RGB", {"append": True})),
    ".webp": (("RGB", {"lossless": True}), ("RGBA", {"lossless": True}), ("RGB", {"append": True})),
    ".avif": (("RGB", {}), ("RGBA", {})),
    ".jp2": (("L", {}), ("LA", {}), ("RGB", {}), ("RGBA", {})),
    ".ppm": (("RGB", {}),),
    ".pgm": (("L", {}), ("I;16", {})),
    ".pbm": (("1", {}),),
    ".pfm": (("F", {}),),
    ".ico": (("RGBA", {}),),
    ".icns": (("RGBA", {}),),
    ".sgi": (("L", {}), ("RGB", {}), ("RGBA", {})),
    ".tga": (("L", {}), ("LA", {}), ("P", {}), ("RGB", {}), ("RGBA", {"compression": "tga_rle"})),
    ".pcx": (("1", {}), ("L", {}), ("P", {}), ("RGB", {})),
    ".dds": (("L", {}), ("RGB", {}), ("RGBA", {})),
    ".qoi": (("RGB", {}), ("RGBA", {})),
    ".psd": (("RGB", {}),),
    ".ras": (("RGB", {}),),
}  # fmt: skip
ALL = tuple((suffix, mode, options) for suffix, kinds in KINDS.items() for mode, options in kinds)
TOP = {"I;16": 65535, "I": 65535, "F": 1.0}  # the largest value of a pixel, where that is not 255


def drawn(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    """Smooth colours under noise, so that no codec and no filter can hide an error."""
    rng, (width, height) = np.random.default_rng(seed), size
    y, x = np.mgrid[0:height, 0:width] / max(size)
    planes = [np.sin(3 * x * a + 5 * y * b) * 0.4 + 0.5 for a, b in rng.uniform(0.2, 2, (4, 2))]
    values = np.clip(np.stack(planes, -1) + rng.normal(0, 0.05, (height, width, 4)), 0, 1)
    if mode in TOP:
        grey = values[..., 0] * TOP[mode]
        return Image.fromarray(grey.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]))
    image = Image.fromarray(np.rint(values * 255).astype(np.uint8))
    if mode in ("RGBA", "LA"):
        return image if mode == "RGBA" else image.convert("LA")
    return image.convert("RGB").convert(mode)


def picture(suffix: str, mode: str, options: dict[str, Any], *, size: tuple[int, int], seed: int) -> bytes:
    """A file of that kind."""
    image, options, content = drawn(mode, size, seed), dict(options), io.BytesIO()
    if suffix in BY_HAND:
        return BY_HAND[suffix](image)
    if suffix == ".ico":
        image.thumbnail((200, 200))
        options["sizes"] = [image.size]
    if options.pop("append", False):
        options |= {"save_all": True, "append_images": [drawn(mode, size, seed + 1)]}
    if options.pop("exif", False):
        image.getexif()[0x0112] = 6  # lies on its side
        options["exif"] = image.getexif()
    image.save(content, **{"format": Image.registered_extensions()[suffix], **options})
    return content.getvalue()


def _qoi(image: Image.Image) -> bytes:
    """Every pixel written out."""
    channels = len(image.getbands())
    pixels = np.asarray(image).reshape(-1, channels)
    marks = np.full((len(pixels), 1), 0xFB + channels, np.uint8)
    head = b"qoif" + struct.pack(">IIBB", *image.size, channels, 0)
    return head + np.hstack([marks, pixels]).tobytes() + bytes(7) + b"\x01"


def _psd(image: Image.Image) -> bytes:
    width, height = image.size
    head = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, height, width, 8, 3) + bytes(12)
    return head + struct.pack(">H", 0) + np.asarray(image).transpose(2, 0, 1).tobytes()


def _sun(image: Image.Image) -> bytes:
    width, height = image.size
    rows = np.asarray(image)[..., ::-1].reshape(height, -1)
    rows = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2)))
    return struct.pack(">8I", 0x59A66A95, width, height, 24, rows.size, 1, 0, 0) + rows.tobytes()


def _icns(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.resize((128, 128)).save(content, "PNG")
    part = b"ic07" + struct.pack(">I", 8 + len(content.getvalue())) + content.getvalue()
    return b"icns" + struct.pack(">I", 8 + len(part)) + part


BY_HAND = {".icns": _icns, ".qoi": _qoi, ".psd": _psd, ".ras": _sun}


def folder_of(root: Path, number: int, *, seed: int = 0) -> Path:
    """`number` pictures of all kinds in turn, in three classes with folders in them; sides of 5 to 400 pixels."""
    rng = np.random.default_rng(seed)
    for index in range(number):
        suffix, mode, options = ALL[index % len(ALL)]
        size = (int(rng.integers(5, 400)), int(rng.integers(5, 400)))
        folder = root / ("red fox", "Blue_bird", "x-ray")[index % 3] / ("", "more", "more/b")[index % 5 % 3]
        folder.mkdir(parents=True, exist_ok=True)
        content = picture(suffix, mode, options, size=size, seed=index)
        name = f"{index:04d}-{mode.replace(';', '')}{suffix if index % 2 else suffix.upper()}"
        (folder / name).write_bytes(content)
    return root
