"""The images to fine-tune on: a coloured shape that shares its image with strong patterns or pen strokes.

Adversarial fine-tuning without labels keeps the features of what its images show. Shapes on calm grounds show little
else, and then robustness stays with shapes; clutter carries it over to what was never named.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

from trainers.data.drawn import corpus, draw, glyphs
from trainers.data.drawn.draw import SIZE, TEXTURES, Field

PATTERNED, SCRIBBLED = 0.4, 0.3  # shares of the images; the rest is as in the corpus
FINE = 4  # strokes are drawn on a canvas so many times finer


def cluttered_shape(rng: Generator, shape: str, color: str) -> Field:
    """[3, H, W] in [0, 1]: a shape of a colour, on a two-colour pattern, under pen strokes, or alone."""
    style = rng.random()
    if style < PATTERNED:
        mask = draw.shape(rng, shape)
        pattern = corpus.texture_scene(rng, TEXTURES[rng.integers(len(TEXTURES))])
        return pattern + mask[None] * (corpus.paint(rng, color)[:, None, None] - pattern)
    image = corpus.shape_scene(rng, shape, color, plain=0.3)
    if style < PATTERNED + SCRIBBLED:
        ink = np.float32(rng.integers(2)) * np.ones(3, np.float32) if rng.random() < 0.3 else rng.random(3, np.float32)
        image = image + scribble(rng)[None] * (ink[:, None, None] - image)
    return image


def scribble(rng: Generator) -> Field:
    """Mask [H, W] of one to three straight or bent pen strokes that mean nothing."""
    size = SIZE * FINE
    canvas = Image.new("L", (size, size))
    pen = ImageDraw.Draw(canvas)
    for _ in range(int(rng.integers(1, 4))):
        points = rng.uniform(8, size - 8, (int(rng.integers(2, 6)), 2))
        if rng.random() < 0.5:
            points = glyphs.curve(points)
        pen.line([tuple(point) for point in points], fill=255, width=int(rng.integers(7, 22)), joint="curve")
    return draw.shrink(canvas)
