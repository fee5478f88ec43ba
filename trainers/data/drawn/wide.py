"""Which classes of the six drawn families `tiny-wide` trains on, and what its held-out classes are for.

The classes were held out before any model was trained on the others; which family's held-out classes have which role
was chosen after a few short runs. Importing this imports nothing.
"""

from __future__ import annotations

HELD_OUT: dict[str, tuple[str, ...]] = {  # by kind; the other classes of the family are `tiny-wide`'s
    "shape": ("triangle", "cross", "crescent", "oval"),
    "texture": ("diagonal stripes", "grid", "zigzag", "concentric rings"),
    "color": ("orange", "green", "purple", "gray"),
    "count": (
        "two circles", "four circles", "one squares", "five squares", "three triangles", "four triangles",
        "two crosses", "three crosses",
    ),  # every number and every shape is trained on in other pairs
    "letter": ("B", "E", "G", "J", "L", "O", "Q", "T", "W", "Z"),
    "digit": ("2", "4", "7", "9"),
}  # fmt: skip

PHRASES: dict[str, str] = {  # a class of `tiny-wide`, so that one template reads well for all families
    "shape": "a {}",
    "texture": "a {} pattern",
    "color": "the color {}",
    "count": "{}",
    "letter": "the letter {}",
    "digit": "the digit {}",
}
TEMPLATES = ("a photo of {}.",)  # with the phrases, every family's own first template

WIDE_ROLES: dict[str, tuple[str, ...]] = {  # a family's held-out classes have one role, so no class has two
    "train": ("tiny-wide",),
    "dev": ("heldout-shapes", "heldout-counts"),
    "confirm": ("heldout-colors", "heldout-textures"),
    "final": ("heldout-letters", "heldout-digits", "real-digits"),
}
