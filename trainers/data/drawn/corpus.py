"""Drawn images with captions. One `Scene` is an image and what it truly shows; a caption may say less than that."""

from __future__ import annotations

import hashlib
import os
import string
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np
import torch
from numpy.random import Generator
from PIL import __version__ as pillow_version
from torch import Tensor

from trainers.data.drawn import draw, glyphs
from trainers.data.drawn.draw import COLORS, SHAPES, SIZE, TEXTURES, Field

LETTERS = tuple(string.ascii_uppercase)
DIGITS = tuple(string.digits)
NUMBERS = ("one", "two", "three", "four", "five")
COUNTED = {"circles": "circle", "squares": "square", "triangles": "triangle", "crosses": "cross"}
PAINTS = tuple(name for name in COLORS if name not in ("gray", "black"))  # colours that shapes take

TEMPLATES: dict[str, tuple[str, ...]] = {
    "color": ("a photo of the color {}.", "the color {}.", "a {} picture.", "something {}."),
    "shape": ("a photo of a {}.", "a drawing of a {}.", "a picture of a {}.", "a {}."),
    "texture": ("a photo of a {} pattern.", "a {} texture.", "a picture of {}.", "a drawing of a {} pattern."),
    "letter": ("a photo of the letter {}.", "a drawing of the letter {}.", "the letter {}.", 'a letter: "{}".'),
    "digit": ("a photo of the digit {}.", "a drawing of the number {}.", "the digit {}.", 'a number: "{}".'),
    "count": ("a photo of {}.", "a drawing of {}.", "a picture of {}.", "{}."),
}
KINDS = tuple(TEMPLATES)
SHARES = (0.05, 0.27, 0.16, 0.24, 0.19, 0.09)  # of the corpus, in the order of KINDS


def paint(rng: Generator, name: str) -> Field:
    """A colour of this name, each time a little different."""
    return np.clip(np.array(COLORS[name]) + rng.normal(0, 0.035, 3), 0, 1).astype(np.float32)


def _any_color(rng: Generator, *, unlike: Field, distance: float) -> Field:
    """A random colour whose brightness or hue differs enough from `unlike`."""
    while True:
        color = rng.random(3, np.float32)
        if np.linalg.norm(color - unlike) >= distance and abs(color.mean() - unlike.mean()) >= distance / 4:
            return color


def _blend(field: Field, low: Field, high: Field) -> Field:
    """[3, H, W]: `low` where the field is 0, `high` where it is 1."""
    return low[:, None, None] + field[None] * (high - low)[:, None, None]


def _background(rng: Generator, *, unlike: Field, distance: float, plain: float) -> Field:
    """[3, H, W]: plain, or two similar colours in some texture, all of it away from `unlike`."""
    base = _any_color(rng, unlike=unlike, distance=distance)
    if rng.random() < plain:
        return np.broadcast_to(base[:, None, None], (3, SIZE, SIZE)).astype(np.float32)
    away = base - unlike
    other = np.clip(base + away / np.linalg.norm(away) * rng.uniform(0, 0.3) + rng.normal(0, 0.08, 3), 0, 1)
    field = draw.texture(rng, TEXTURES[rng.integers(len(TEXTURES))])
    return _blend(field, base, other.astype(np.float32))


def _ink(rng: Generator, mask: Field, *, plain: float, distance: float) -> Field:
    color = rng.random(3, np.float32)
    ground = _background(rng, unlike=color, distance=distance, plain=plain)
    return ground + mask[None] * (color[:, None, None] - ground)


def color_scene(rng: Generator, name: str) -> Field:
    """A surface of one colour with light and a faint texture on it."""
    tone = paint(rng, name)
    light = 1 + rng.uniform(-0.15, 0.15) * (2 * draw.texture(rng, "gradient") - 1)
    grain = rng.uniform(0, 0.08) * (draw.texture(rng, TEXTURES[rng.integers(len(TEXTURES))]) - 0.5)
    return tone[:, None, None] * light[None] + grain[None]


def shape_scene(rng: Generator, name: str, color_name: str, *, plain: float = 0.5) -> Field:
    color = paint(rng, color_name)
    ground = _background(rng, unlike=color, distance=0.45, plain=plain)
    mask = draw.shape(rng, name)
    return ground + mask[None] * (color[:, None, None] - ground)


def texture_scene(rng: Generator, name: str) -> Field:
    low = rng.random(3, np.float32)
    return _blend(draw.texture(rng, name), low, _any_color(rng, unlike=low, distance=0.3))


def letter_scene(rng: Generator, name: str) -> Field:
    mask = glyphs.glyph(rng, name)
    if rng.random() < 0.12:
        mask = glyphs.low_resolution(mask, pixels=int(rng.integers(10, 17)))
    return _ink(rng, mask, plain=0.65, distance=0.3)


def digit_scene(rng: Generator, name: str, *, printed: float = 0.4, gray: float = 0.38) -> Field:
    """Printed, written, or (`gray`) written in 8 x 8 gray pixels, white on black, as the real digits are."""
    style = rng.random()
    if style < gray:
        written = rng.random() < 0.8
        mask = glyphs.strokes(rng, name, full=True) if written else glyphs.glyph(rng, name, height=(30, 33), tilt=8)
        field = glyphs.low_resolution(np.clip(mask * rng.uniform(0.9, 1.3), 0, 1))
        if rng.random() < 0.8:
            return np.broadcast_to(field, (3, SIZE, SIZE))
        low = rng.random(3, np.float32)
        return _blend(field, low, _any_color(rng, unlike=low, distance=0.45))
    mask = glyphs.glyph(rng, name) if style < gray + printed else glyphs.strokes(rng, name)
    return _ink(rng, mask, plain=0.65, distance=0.3)


def count_scene(rng: Generator, name: str) -> Field:
    """Some equal shapes in the cells of a 3 x 3 grid."""
    number, plural = name.split()
    mask = np.zeros((SIZE, SIZE), np.float32)
    for cell in rng.permutation(9)[: NUMBERS.index(number) + 1]:
        middle = (np.array([cell % 3, cell // 3]) + 0.5) * SIZE / 3 + rng.uniform(-0.8, 0.8, 2)
        mask = np.maximum(mask, draw.shape(rng, COUNTED[plural], radius=(3.6, 4.6), center=tuple(middle)))
    return _ink(rng, mask, plain=0.8, distance=0.35)


SCENES: dict[str, Callable[[Generator, str], Field]] = {
    "color": color_scene, "texture": texture_scene, "letter": letter_scene, "digit": digit_scene, "count": count_scene,
}  # fmt: skip
NAMES: dict[str, Sequence[str]] = {
    "color": tuple(COLORS), "shape": tuple(SHAPES), "texture": TEXTURES, "letter": LETTERS, "digit": DIGITS,
    "count": tuple(f"{number} {plural}" for plural in COUNTED for number in NUMBERS),
}  # fmt: skip


def to_uint8(image: Field) -> np.ndarray:
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)


@dataclass(frozen=True)
class Corpus:
    """`shown` and `said` are int64 [N, 3]: kind, name, colour (-1: none, or not said)."""

    images: Tensor  # uint8 [N, 3, 32, 32]
    captions: tuple[str, ...]
    shown: Tensor
    said: Tensor


def scene(rng: Generator) -> tuple[np.ndarray, str, tuple[int, int, int], tuple[int, int, int]]:
    """One image of the corpus, its caption, what it shows and what the caption says."""
    kind = int(rng.choice(len(KINDS), p=SHARES))
    names = NAMES[KINDS[kind]]
    number = int(rng.integers(len(names)))
    words, color, told = names[number], -1, -1
    if KINDS[kind] == "shape":
        color = int(rng.integers(len(PAINTS)))
        image = shape_scene(rng, words, PAINTS[color])
        if rng.random() < 0.6:
            words, told = f"{PAINTS[color]} {words}", color
    else:
        image = SCENES[KINDS[kind]](rng, words)
    templates = TEMPLATES[KINDS[kind]]
    caption = templates[int(rng.integers(len(templates)))].format(words)
    return to_uint8(image), caption, (kind, number, color), (kind, number, told)


CHUNK = 1000


def _chunk(seed: int, chunk: int) -> list[tuple[np.ndarray, str, tuple[int, int, int], tuple[int, int, int]]]:
    rng = np.random.default_rng([seed, 0, chunk])
    return [scene(rng) for _ in range(CHUNK)]


def cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agft-study"


def source_hash() -> str:
    """Of everything that decides a pixel: the drawing code and the library that fills polygons and renders fonts."""
    files = (draw.__file__, glyphs.__file__, __file__, str(Path(__file__).with_name("clutter.py")))
    parts = [Path(file).read_bytes() for file in files]
    parts.append(pillow_version.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:12]


def load_corpus(seed: int, *, num_images: int = 90_000, workers: int = 2) -> Corpus:
    """The corpus of a seed, drawn once and kept on disk. `num_images` is a multiple of 1000."""
    path = cache_folder() / f"tiny-{source_hash()}" / f"corpus-{seed}-{num_images}.pt"
    if not path.exists():
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            chunks = num_images // CHUNK
            rows = [row for chunk in pool.map(_chunk, [seed] * chunks, range(chunks)) for row in chunk]
        images, captions, shown, said = zip(*rows, strict=True)
        content = {"images": torch.from_numpy(np.stack(images)), "captions": captions, "shown": torch.tensor(shown),
                   "said": torch.tensor(said)}  # fmt: skip
        save_atomically(content, path)
    return Corpus(**torch.load(path, weights_only=True))


def save_atomically(content: dict[str, object], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile(dir=path.parent, delete=False) as file:
        torch.save(content, file)
    os.replace(file.name, path)
