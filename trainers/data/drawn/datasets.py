"""Zero-shot sets for the tiny CLIP, and the set to fine-tune it on. Importing this imports no torch and draws nothing.

The roles were fixed before any model was trained: fine-tuning sees shapes in colours only, so that the final sets
(letters, textures, real digits) are families of concepts that it has not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.random import Generator
    from numpy.typing import NDArray

    from trainers.data.base import DatasetEntry, ImageSet

    Paint = Callable[[Generator, str], NDArray[np.float32]]
    TINY_DATASETS: dict[str, DatasetEntry]


STATED_EPS = 6 / 255  # the L-inf radius at which the shipped tiny CLIP's fragility on these sets is stated

SEED = 20_260_707  # of the drawn sets; the corpus has a seed of its own and another key
DRAWN = "drawn by trainers.tiny (Apache-2.0)"
GLYPHS = f"{DRAWN} from matplotlib's fonts: DejaVu (free licence), STIX (OFL), Computer Modern (public domain)"
UCI = "Optical Recognition of Handwritten Digits, UCI (CC BY 4.0), as shipped in scikit-learn"


def _painter(kind: str, name: str) -> tuple[tuple[str, ...], tuple[str, ...], Paint]:
    """Class names, templates and the function that draws one image of a class."""
    from trainers.data.drawn import corpus as c
    from trainers.data.drawn.clutter import cluttered_shape

    def painted_shape(rng: Generator, words: str) -> NDArray[np.float32]:
        color, shape = words.split()
        return cluttered_shape(rng, shape, color)

    def shape(rng: Generator, words: str) -> NDArray[np.float32]:
        return c.shape_scene(rng, words, c.PAINTS[int(rng.integers(len(c.PAINTS)))])

    templates = c.TEMPLATES[kind][:2]
    if name == "tiny-color-shapes":
        return tuple(f"{color} {words}" for color in c.PAINTS for words in c.NAMES["shape"]), templates, painted_shape
    special: dict[str, Paint] = {"shape": shape, "digit": partial(c.digit_scene, gray=0.0, printed=0.65)}
    return tuple(c.NAMES[kind]), templates, special.get(kind) or c.SCENES[kind]


def _draw(name: str, kind: str, number: int, num_images: int) -> ImageSet:
    """Image i shows class i modulo the number of classes, so that every prefix is balanced. Kept on disk."""
    import numpy as np
    import torch

    from trainers.data.base import ImageSet
    from trainers.data.drawn import corpus as c

    classes, templates, paint = _painter(kind, name)
    path = c.cache_folder() / f"tiny-{c.source_hash()}" / f"{name}-{SEED}-{num_images}.pt"
    if not path.exists():
        rngs = (np.random.default_rng([SEED, number, i]) for i in range(num_images))
        drawn = [c.to_uint8(paint(rng, classes[i % len(classes)])) for i, rng in enumerate(rngs)]
        c.save_atomically({"images": torch.from_numpy(np.stack(drawn))}, path)
    images = torch.load(path, weights_only=True)["images"]
    return ImageSet(name, images, torch.arange(num_images) % len(classes), classes, templates)


def _real_digits(num_images: int) -> ImageSet:
    """The first images of every class, 8 x 8 gray pixels of 0..16, enlarged to 32 x 32 (bicubic), white on black."""
    import numpy as np
    import torch

    from trainers.data.base import ImageSet
    from trainers.data.drawn import corpus as c
    from trainers.data.drawn.draw import SIZE
    from trainers.data.drawn.glyphs import enlarge
    from trainers.errors import UserError

    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UserError("dataset real-digits: it comes with scikit-learn, which is not installed") from error
    digits = load_digits()
    each = num_images // 10
    rows = np.stack([np.flatnonzero(digits.target == label)[:each] for label in range(10)], axis=1).reshape(-1)
    gray = [c.to_uint8(enlarge(digits.images[row] / 16)) for row in rows]
    images = torch.from_numpy(np.stack(gray))[:, None].expand(-1, 3, SIZE, SIZE).contiguous()
    labels = torch.arange(num_images) % 10
    return ImageSet("real-digits", images, labels, c.DIGITS, c.TEMPLATES["digit"][:2])


def _row(name: str, kind: str, number: int, num_classes: int, each: int, description: str) -> DatasetEntry:
    from trainers.data.base import DatasetEntry

    n = num_classes * each
    source = GLYPHS if kind in ("letter", "digit") else DRAWN
    return DatasetEntry(name, partial(_draw, name, kind, number, n), n, num_classes, source, description)


@cache
def _table() -> dict[str, DatasetEntry]:
    from trainers.data.base import DatasetEntry

    rows = (
        _row("tiny-color-shapes", "shape", 1, 120, 80, "12 shapes in 10 colours, most in clutter; to fine-tune on"),
        _row("tiny-shapes", "shape", 2, 12, 60, "shapes in any colour"),
        _row("tiny-digits", "digit", 3, 10, 80, "printed and pen-drawn digits"),
        _row("tiny-colors", "color", 4, 12, 50, "surfaces of one colour"),
        _row("tiny-counts", "count", 5, 20, 40, "one to five circles, squares, triangles or crosses"),
        _row("tiny-letters", "letter", 6, 26, 30, "printed capital letters"),
        _row("tiny-textures", "texture", 7, 12, 60, "stripes, checkerboard, dots, waves, ... in two colours"),
        DatasetEntry("real-digits", partial(_real_digits, 1000), 1000, 10, UCI, "handwritten digits, 8 x 8 pixels"),
    )
    return {row.name: row for row in rows}


def __getattr__(name: str) -> Any:
    """TINY_DATASETS, made at first sight: trainers.data lists it, and its rows are of a type of trainers.data."""
    if name == "TINY_DATASETS":
        return _table()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


TINY_ROLES: dict[str, tuple[str, ...]] = {
    "train": ("tiny-color-shapes",),
    "dev": ("tiny-shapes", "tiny-digits"),
    "confirm": ("tiny-colors", "tiny-counts"),
    "final": ("tiny-letters", "tiny-textures", "real-digits"),
}
