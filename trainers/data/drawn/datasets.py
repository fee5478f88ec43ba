"""Zero-shot sets for the tiny CLIP, and two sets to fine-tune it on. Importing this imports no torch and draws nothing.

`tiny-wide` has part of the classes of all six families, and sets of held-out classes show the others
(`trainers.data.drawn.wide`). `tiny-color-shapes`, the stress test, has shapes in colours only, so that letters,
textures and real digits are families that fine-tuning has not seen; its roles were fixed before any model was trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from trainers.data.drawn.wide import HELD_OUT, PHRASES, TEMPLATES

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


WIDE = "wide"  # the kind of a set of several families


def _painter(kind: str, name: str) -> tuple[tuple[str, ...], tuple[str, ...], Paint]:
    """Class names, templates and the function that draws one image of a class."""
    from trainers.data.drawn import corpus as c
    from trainers.data.drawn.clutter import cluttered_shape

    if kind == WIDE:
        return _wide_painter()

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


def _wide_painter() -> tuple[tuple[str, ...], tuple[str, ...], Paint]:
    """The classes of all families that are not held out; each is a phrase, drawn as its own family draws it."""
    members: dict[str, tuple[Paint, str]] = {}
    for kind, phrase in PHRASES.items():
        names, _, paint = _painter(kind, "")
        assert set(HELD_OUT[kind]) < set(names), kind
        members |= {phrase.format(words): (paint, words) for words in names if words not in HELD_OUT[kind]}

    def painted(rng: Generator, phrase: str) -> NDArray[np.float32]:
        paint, words = members[phrase]
        return paint(rng, words)

    return tuple(members), TEMPLATES, painted


def _draw(name: str, kind: str, number: int, num_images: int, shown: tuple[str, ...] = ()) -> ImageSet:
    """Image i shows class i modulo the number of classes, so that every prefix is balanced. Kept on disk.

    With `shown` it is one of these, in turn, and the others are there to be mistaken for only.
    """
    import numpy as np
    import torch

    from trainers.data.base import ImageSet
    from trainers.data.drawn import corpus as c

    classes, templates, paint = _painter(kind, name)
    which = [classes.index(words) for words in shown or classes]
    labels = torch.tensor(which).repeat(num_images // len(which))
    path = c.cache_folder() / f"tiny-{c.source_hash()}" / f"{name}-{SEED}-{num_images}.pt"
    if not path.exists():
        rngs = (np.random.default_rng([SEED, number, i]) for i in range(num_images))
        drawn = [c.to_uint8(paint(rng, classes[label])) for rng, label in zip(rngs, labels.tolist(), strict=True)]
        c.save_atomically({"images": torch.from_numpy(np.stack(drawn))}, path)
    images = torch.load(path, weights_only=True)["images"]
    return ImageSet(name, images, labels, classes, templates)


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
    source = GLYPHS if kind in ("letter", "digit", WIDE) else DRAWN
    return DatasetEntry(name, partial(_draw, name, kind, number, n), n, num_classes, source, description)


def _held_out_row(name: str, kind: str, number: int, num_classes: int, each: int) -> DatasetEntry:
    """`each` images of every held-out class of a family, scored among all its `num_classes`."""
    shown = HELD_OUT[kind]
    n = len(shown) * each
    family = name.removeprefix("heldout-")
    row = _row(name, kind, number, num_classes, each, f"the {family} that tiny-wide holds out, scored among all")
    return replace(row, load=partial(_draw, name, kind, number, n, shown), num_images=n, held_out=shown)


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
        _row("tiny-wide", WIDE, 8, 58, 80, "part of the classes of all six families; to fine-tune on"),
        _held_out_row("heldout-shapes", "shape", 9, 12, 120),
        _held_out_row("heldout-textures", "texture", 10, 12, 120),
        _held_out_row("heldout-colors", "color", 11, 12, 120),
        _held_out_row("heldout-counts", "count", 12, 20, 60),
        _held_out_row("heldout-letters", "letter", 13, 26, 50),
        _held_out_row("heldout-digits", "digit", 14, 10, 120),
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
