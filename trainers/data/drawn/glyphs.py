"""Glyph masks: a character of a font, or a digit as strokes of a pen; and the low resolution of scanned digits."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from trainers.data.drawn.draw import FINE, SIZE, Field, shrink
from trainers.errors import UserError

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif",
    "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "cmb10", "cmr10",
    "cmss10", "cmtt10",
)  # fmt: skip


@cache
def _bitmap(font: str, character: str, stroke: int) -> Image.Image:
    """The character, cropped to its ink, about 72 pixels high."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("tiny CLIP: drawing letters and digits needs the fonts that matplotlib brings") from error
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{font}.ttf"
    if not path.exists():
        raise UserError(f"tiny CLIP: font {path} is missing; reinstall matplotlib to draw letters and digits")
    face = ImageFont.truetype(str(path), 96)
    canvas = Image.new("L", (192, 192))
    ImageDraw.Draw(canvas).text((40, 30), character, fill=255, font=face, stroke_width=stroke)
    return canvas.crop(canvas.getbbox())


def _place(rng: Generator, ink: Image.Image, *, height: float, width: float, tilt: float, loose: bool) -> Field:
    """Scale `ink` to `height` x `width` pixels of the final image, tilt and shear it, put it at a random place."""
    angle, shear = np.deg2rad(rng.uniform(-tilt, tilt)), rng.uniform(-0.15, 0.15)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    forward = turn @ np.array([[1, shear], [0, 1]]) @ np.diag([width / ink.width, height / ink.height]) * FINE / SIZE
    half = np.abs(forward) @ np.array([ink.width, ink.height]) / 2
    slack = np.maximum(0, FINE / 2 - half) if loose else np.zeros(2)
    middle = FINE / 2 + rng.uniform(-slack, slack)
    back = np.linalg.inv(forward)
    offset = np.array([ink.width, ink.height]) / 2 - back @ middle
    data = (back[0, 0], back[0, 1], offset[0], back[1, 0], back[1, 1], offset[1])
    return shrink(ink.transform((FINE, FINE), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR))


def glyph(rng: Generator, character: str, *, height: tuple[float, float] = (17, 28), tilt: float = 14,
          loose: bool = True) -> Field:  # fmt: skip
    """Mask of one printed character: font, weight, size, tilt and place vary."""
    ink = _bitmap(FONTS[rng.integers(len(FONTS))], character, int(rng.integers(0, 5)))
    high = rng.uniform(*height)
    wide = min(high * ink.width / ink.height * rng.uniform(0.85, 1.15), 28.0)
    return _place(rng, ink, height=high, width=wide, tilt=tilt, loose=loose)


# Ways to write a digit: strokes through points "xy" of a 5 x 7 grid; a repeated point makes a corner.
STROKES: dict[str, tuple[str, ...]] = {
    "0": ("20 02 04 26 44 42 20", "30 11 03 05 26 45 43 31 30"),
    "1": ("12 20 20 26", "20 26", "11 20 20 26", "30 23 16", "02 20 20 26", "03 13 20 20 26", "03 20 20 26|16 36"),
    "2": ("01 10 30 41 32 06 06 46", "02 10 30 42 24 06 06 26 46", "01 20 41 33 15 06 15 25 46",
          "11 20 31 32 24 16 16 36 46", "12 20 31 23 15 15 36"),
    "3": ("01 10 30 41 32 13 13 34 45 36 16 05", "00 40 40 23 23 44 36 05", "00 20 31 22 23 34 35 26 06"),
    "4": ("30 30 04 04 44|31 36", "10 03 03 43|30 36", "20 04 04 44|23 26", "30 30 04 04 44|33 26",
          "10 04 34|41 34 26"),
    "5": ("40 10 10 03 23 44 45 26 06", "10 03 32 44 36 06|10 40", "30 10 10 12 33 34 26 06"),
    "6": ("30 12 04 16 36 45 33 14", "20 03 05 26 45 33 04", "10 03 05 16 36 44 23 04"),
    "7": ("00 40 40 26", "00 40 40 16|13 43", "01 10 40 40 23 16", "00 40 40 32 26|14 34", "10 40 40 26|03 43"),
    "8": ("20 01 23 45 26 05 23 41 20", "30 10 12 34 36 16 14 32 30", "41 20 11 22 34 36 16 14 32 41"),
    "9": ("40 10 02 23 41 41 44 26 06", "41 20 02 13 32 41 41 36", "30 11 02 13 32 30 30 36",
          "41 20 01 12 42 41 45 26 05", "31 20 12 23 32 31 34 26 16"),
}  # fmt: skip


def curve(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Catmull-Rom through the points, eight steps a segment."""
    padded = np.concatenate([points[:1], points, points[-1:]])
    p0, p1, p2, p3 = (padded[i : len(padded) - 3 + i, None] for i in range(4))
    t = np.linspace(0, 1, 8)[None, :, None]
    bent = 2 * p1 + (p2 - p0) * t + (2 * p0 - 5 * p1 + 4 * p2 - p3) * t**2 + (3 * p1 - p0 - 3 * p2 + p3) * t**3
    return (bent / 2).reshape(-1, 2)


def strokes(rng: Generator, digit: str, *, full: bool = False) -> Field:
    """Mask of one digit written with a pen; `full` makes it as high as the image and upright."""
    way = STROKES[digit][rng.integers(len(STROKES[digit]))]
    pen = rng.uniform(13, 26) if full else rng.uniform(7, 15)
    canvas = Image.new("L", (128, 148))
    draw = ImageDraw.Draw(canvas)
    drift = rng.normal(0, 0.08, (7, 5, 2))
    for stroke in way.split("|"):
        points = np.array([(int(p[0]), int(p[1])) + drift[int(p[1]), int(p[0])] for p in stroke.split()])
        points = points + rng.normal(0, 0.12, (1, 2))
        line = [(24 + 20 * x, 14 + 20 * y) for x, y in curve(points)]
        draw.line(line, fill=255, width=round(pen), joint="curve")
        for x, y in (line[0], line[-1]):
            draw.ellipse((x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2), fill=255)
    ink = canvas.crop(canvas.getbbox())
    high = rng.uniform(30, 33) if full else rng.uniform(17, 28)
    wide = min(max(high * ink.width / ink.height * rng.uniform(0.75, 1.2), 0.12 * high), 28.0)
    return _place(rng, ink, height=high, width=wide, tilt=8 if full else 12, loose=not full)


def low_resolution(field: Field, *, pixels: int = 8, levels: int = 16) -> Field:
    """Average down to `pixels` x `pixels`, round to `levels` + 1 grays and enlarge again (bicubic)."""
    small = Image.fromarray(field).resize((pixels, pixels), Image.Resampling.BOX)
    return enlarge(np.round(np.asarray(small, np.float32) * levels) / levels)


def enlarge(small: NDArray[np.floating]) -> Field:
    """A small gray image at 32 x 32 pixels: bicubic, clipped to [0, 1]. The real digits come by the same way."""
    big = Image.fromarray(small.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(big, np.float32), 0, 1)
