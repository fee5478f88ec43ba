"""Drawing primitives: masks and fields of 32 x 32 floats in [0, 1], each a function of a `numpy.random.Generator`."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Field = NDArray[np.float32]

SIZE = 32  # pixels a side
FINE = 3 * SIZE  # masks are drawn at this size, then averaged down

COLORS = {  # RGB in [0, 1]
    "red": (0.88, 0.12, 0.12), "orange": (1.0, 0.52, 0.05), "yellow": (0.97, 0.9, 0.1), "green": (0.15, 0.62, 0.2),
    "cyan": (0.1, 0.85, 0.9), "blue": (0.12, 0.22, 0.88), "purple": (0.5, 0.15, 0.7), "pink": (1.0, 0.5, 0.72),
    "brown": (0.48, 0.28, 0.12), "white": (0.96, 0.96, 0.96), "gray": (0.5, 0.5, 0.5), "black": (0.05, 0.05, 0.05),
}  # fmt: skip

# --- shapes: polygons around the origin, radius about 1; a second polygon is cut out ------------------------------


def _ellipse(a: float, b: float, *, center: tuple[float, float] = (0, 0)) -> Field:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    return np.stack([center[0] + a * np.cos(t), center[1] + b * np.sin(t)], 1).astype(np.float32)


def _regular(corners: int, *, inner: float | None = None) -> Field:
    """A regular polygon with a corner on top; with `inner`, a star whose inner corners lie at that radius."""
    count = corners if inner is None else 2 * corners
    t = np.arange(count) * 2 * np.pi / count - np.pi / 2
    r = np.ones(count) if inner is None else np.where(np.arange(count) % 2, inner, 1.0)
    return np.stack([r * np.cos(t), r * np.sin(t)], 1).astype(np.float32)


def _polygon(*points: tuple[float, float]) -> Field:
    return np.array(points, np.float32)


def _box(a: float, b: float) -> Field:
    return _polygon((-a, -b), (a, -b), (a, b), (-a, b))


def _cross(a: float) -> Field:
    return _polygon((-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a), (a, 1), (-a, 1), (-a, a), (-1, a), (-1, -a),
                    (-a, -a))  # fmt: skip


def _heart() -> Field:
    t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x = 16 * np.sin(t) ** 3
    y = -(13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t))
    return (np.stack([x, y], 1) / 16).astype(np.float32)


SHAPES: dict[str, tuple[Field, Field | None]] = {
    "circle": (_ellipse(0.95, 0.95), None),
    "square": (_box(0.82, 0.82), None),
    "triangle": (_regular(3), None),
    "diamond": (_polygon((0, -1.1), (0.72, 0), (0, 1.1), (-0.72, 0)), None),
    "star": (_regular(5, inner=0.42) * 1.1, None),
    "cross": (_cross(0.32), None),
    "heart": (_heart(), None),
    "ring": (_ellipse(1, 1), _ellipse(0.55, 0.55)),
    "crescent": (_ellipse(1, 1), _ellipse(0.85, 0.85, center=(0.5, -0.1))),
    "arrow": (_polygon((-1, -0.28), (0.1, -0.28), (0.1, -0.8), (1.05, 0), (0.1, 0.8), (0.1, 0.28), (-1, 0.28)), None),
    "rectangle": (_box(1.1, 0.5), None),
    "oval": (_ellipse(1.1, 0.55), None),
}


def shrink(canvas: Image.Image) -> Field:
    """Average a fine canvas down to the final size."""
    return np.asarray(canvas.resize((SIZE, SIZE), Image.Resampling.BOX), np.float32) / np.float32(255)


def shape(rng: Generator, name: str, *, radius: tuple[float, float] = (7.5, 13.0),
          center: tuple[float, float] | None = None) -> Field:  # fmt: skip
    """Mask of one shape: radius in pixels, a few degrees of rotation, wholly inside the image."""
    r = rng.uniform(*radius)
    angle = np.deg2rad(rng.uniform(-14, 14))
    slack = max(0.0, SIZE / 2 - 1.05 * r)
    middle = np.array(center if center else SIZE / 2 + rng.uniform(-slack, slack, 2)) * FINE / SIZE
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) * r * FINE / SIZE
    canvas = Image.new("L", (FINE, FINE))
    draw = ImageDraw.Draw(canvas)
    for points, ink in zip(SHAPES[name], (255, 0), strict=True):
        if points is not None:
            draw.polygon([tuple(p) for p in points @ turn + middle], fill=ink)
    return shrink(canvas)


# --- textures ---------------------------------------------------------------------------------------------------------

ROWS, COLUMNS = (g.astype(np.float32) for g in np.mgrid[:SIZE, :SIZE])
TEXTURES = (
    "horizontal stripes", "vertical stripes", "diagonal stripes", "checkerboard", "polka dots", "grid", "waves",
    "zigzag", "speckles", "concentric rings", "gradient", "sunburst",
)  # fmt: skip


def texture(rng: Generator, name: str) -> Field:
    """A field that fills the image; 0 is the first colour and 1 the second."""
    period, hard = rng.uniform(5.5, 10), rng.uniform(1.0, 4.0)
    turn = {"horizontal stripes": 90, "vertical stripes": 0, "diagonal stripes": 45, "checkerboard": 0, "grid": 0,
            "polka dots": 0}  # fmt: skip
    degrees = turn.get(name, 0) + rng.uniform(-7, 7)
    if name == "diagonal stripes" and rng.random() < 0.5:
        degrees += 90
    angle = np.deg2rad(rng.uniform(0, 360) if name == "gradient" else degrees)
    x = COLUMNS * np.cos(angle) + ROWS * np.sin(angle) + rng.uniform(0, period)
    y = -COLUMNS * np.sin(angle) + ROWS * np.cos(angle) + rng.uniform(0, period)
    k = 2 * np.pi / period
    if name == "gradient":
        ramp = x - x.min()
        return ((ramp / ramp.max()) ** rng.uniform(0.7, 1.4)).astype(np.float32)
    if name == "speckles":
        noise = rng.random((SIZE, SIZE), np.float32) < rng.uniform(0.12, 0.35)
        return noise.astype(np.float32)
    if name.endswith("stripes"):
        wave = np.sin(k * x)
    elif name == "checkerboard":
        wave = 2 * np.sin(k * x * 0.75) * np.sin(k * y * 0.75)
    elif name == "polka dots":
        wave = np.cos(k * x * 0.9) + np.cos(k * y * 0.9) - rng.uniform(0.5, 0.9)
    elif name == "grid":
        wave = np.maximum(np.cos(k * x * 0.9), np.cos(k * y * 0.9)) - rng.uniform(0.6, 0.8)
        hard *= 2
    elif name == "waves":
        wave = np.sin(k * (y + rng.uniform(1.5, 2.6) * np.sin(2 * np.pi * x / rng.uniform(12, 20))))
    elif name == "zigzag":
        length = rng.uniform(9, 14)
        wave = np.sin(k * (y + rng.uniform(0.8, 1.1) * (2 * np.abs((x % length) - length / 2) - length / 2)))
    else:
        dx, dy = (g - SIZE / 2 - rng.uniform(-4, 4) for g in (COLUMNS, ROWS))
        if name == "concentric rings":
            wave = np.sin(k * np.hypot(dx, dy) + rng.uniform(0, 2 * np.pi))
        else:
            assert name == "sunburst", name
            wave = np.sin(rng.integers(5, 9) * np.arctan2(dy, dx) + rng.uniform(0, 2 * np.pi))
    return np.clip(0.5 + hard * wave, 0, 1).astype(np.float32)
