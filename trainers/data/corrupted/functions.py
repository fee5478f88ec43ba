"""ImageNet-C's corruptions as functions of one picture. Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261.

Strengths and formulas are those of hendrycks/robustness (ImageNet-C/create_c/make_imagenet_c.py at e0377d4), which
needs scikit-image, OpenCV and ImageMagick; those that can be said with NumPy, SciPy and Pillow are here.
Deviations: draws come from a generator of the picture's own; the result is not compressed as a JPEG of quality 85 once
more; lengths are pixels of whatever size the picture has, where ImageNet-C's pictures have 224 x 224.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Picture = NDArray[np.floating[Any]]  # [H, W, 3] in [0, 1]
    Generator = np.random.Generator

SEVERITIES = 5


def gaussian_noise(x: Picture, c: float, draw: Generator) -> Picture:
    return x + draw.normal(scale=c, size=x.shape)


def shot_noise(x: Picture, c: float, draw: Generator) -> Picture:
    return draw.poisson(x * c) / c


def impulse_noise(x: Picture, c: float, draw: Generator) -> Picture:
    """A share `c` of the values becomes 0 or 1."""
    import numpy as np

    hit, salt = draw.random(x.shape) < c, draw.random(x.shape) < 0.5
    return np.where(hit, salt.astype(x.dtype), x)


def speckle_noise(x: Picture, c: float, draw: Generator) -> Picture:
    return x + x * draw.normal(scale=c, size=x.shape)


def gaussian_blur(x: Picture, c: float, draw: Generator) -> Picture:
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, sigma=(c, c, 0), mode="nearest", truncate=4.0)


def defocus_blur(x: Picture, c: tuple[int, float], draw: Generator) -> Picture:
    """A disk, its edge softened by a Gaussian of 3 x 3 (radius above 8: 5 x 5) values."""
    import numpy as np
    from scipy.ndimage import correlate

    (radius, sigma), reach = c, max(8, c[0])
    side = np.arange(-reach, reach + 1)
    disk = (side[:, None] ** 2 + side[None] ** 2 <= radius**2).astype(float)
    half = 1 if radius <= 8 else 2
    row = np.exp(-(np.arange(-half, half + 1) ** 2) / (2 * sigma**2))
    kernel = correlate(disk / disk.sum(), np.outer(row, row) / row.sum() ** 2, mode="mirror")
    return np.stack([correlate(x[..., channel], kernel, mode="mirror") for channel in range(3)], -1)


def zoom_blur(x: Picture, c: tuple[float, float], draw: Generator) -> Picture:
    """The mean of the picture and of its middle, enlarged more and more (bilinear)."""
    import numpy as np
    from scipy.ndimage import zoom

    height, total, factors = x.shape[0], x.copy(), np.arange(1, *c)
    for factor in factors:
        inner = int(np.ceil(height / factor))
        top = (height - inner) // 2
        large = zoom(x[top : top + inner, top : top + inner], (factor, factor, 1), order=1)
        trim = (large.shape[0] - height) // 2
        total += large[trim : trim + height, trim : trim + height]
    return total / (len(factors) + 1)


def brightness(x: Picture, c: float, draw: Generator) -> Picture:
    """More value, in hue, saturation and value."""
    import numpy as np

    value = x.max(-1, keepdims=True)
    lit = np.clip(value + c, 0, 1)
    return np.where(value > 0, x * lit / np.maximum(value, 1e-12), lit)


def contrast(x: Picture, c: float, draw: Generator) -> Picture:
    means = x.mean((0, 1), keepdims=True)
    return (x - means) * c + means


def saturate(x: Picture, c: tuple[float, float], draw: Generator) -> Picture:
    """Another saturation; grey has hue 0, red."""
    import numpy as np

    value = x.max(-1, keepdims=True)
    had = np.where(value > 0, 1 - x.min(-1, keepdims=True) / np.maximum(value, 1e-12), 0)
    wanted = np.clip(had * c[0] + c[1], 0, 1)
    red = np.concatenate([value, value * (1 - wanted), value * (1 - wanted)], -1)
    return np.where(had > 0, value - (value - x) * wanted / np.maximum(had, 1e-12), red)


def jpeg_compression(x: Picture, c: int, draw: Generator) -> Picture:
    import numpy as np
    from PIL import Image

    content = io.BytesIO()
    _image(x).save(content, "JPEG", quality=c)
    return np.asarray(Image.open(content)) / 255.0


def pixelate(x: Picture, c: float, draw: Generator) -> Picture:
    import numpy as np
    from PIL.Image import Resampling

    height, width = x.shape[:2]
    small = _image(x).resize((max(1, int(width * c)), max(1, int(height * c))), Resampling.BOX)
    return np.asarray(small.resize((width, height), Resampling.BOX)) / 255.0


def _image(x: Picture) -> Any:
    import numpy as np
    from PIL import Image

    return Image.fromarray(np.rint(x * 255).astype(np.uint8))


CORRUPTIONS: dict[str, tuple[Callable[..., Picture], Sequence[Any]]] = {
    "gaussian_noise": (gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (defocus_blur, ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5))),
    "zoom_blur": (zoom_blur, ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))),
    "brightness": (brightness, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": (contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "pixelate": (pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg_compression": (jpeg_compression, (25, 18, 15, 10, 7)),
    "speckle_noise": (speckle_noise, (0.15, 0.2, 0.35, 0.45, 0.6)),
    "gaussian_blur": (gaussian_blur, (1, 2, 3, 4, 6)),
    "saturate": (saturate, ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2))),
}
"""Corruption and its five strengths, by ImageNet-C's name."""


def corrupt(image: NDArray[np.uint8], corruption: str, severity: int, index: int) -> NDArray[np.uint8]:
    """uint8 [H, W, 3] -> the same; what is drawn depends on corruption, severity and `index` alone."""
    import numpy as np

    function, strengths = CORRUPTIONS[corruption]
    draw = np.random.Generator(np.random.Philox(key=[index, 10 * list(CORRUPTIONS).index(corruption) + severity]))
    found = function(image / 255.0, strengths[severity - 1], draw)
    return (np.clip(found, 0, 1) * 255).astype(np.uint8)  # cut off, not rounded, as in the official code
