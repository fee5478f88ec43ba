"""What a served model takes for images and classes, and how it refuses the rest."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.exceptions import MlflowException
from PIL import Image

from study.models.served_model import checked_classes, columns, read_image, texts

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)


def png() -> bytes:
    content = io.BytesIO()
    Image.fromarray(PIXELS).save(content, "PNG")
    return content.getvalue()


def coded() -> str:
    return base64.b64encode(png()).decode()


def as_column(image: Any) -> Any:
    """As it comes out of a table's cell: nested arrays of objects."""
    rows = np.empty(len(image), dtype=object)
    rows[:] = [list(row) for row in image]
    return rows


@pytest.mark.parametrize(
    "image",
    [
        png(), bytearray(png()), coded(), f"data:image/png;base64,{coded()}", PIXELS, PIXELS.astype(np.int64),
        PIXELS.tolist(), PIXELS.transpose(2, 0, 1), as_column(PIXELS), Image.fromarray(PIXELS),
    ],
    ids=["bytes", "bytearray", "base64", "data-url", "uint8", "int64", "lists", "colours-first", "objects", "picture"],
)  # fmt: skip
def test_one_picture_in_every_form_is_the_same_pixels(image: Any) -> None:
    found = read_image(image, "image 0")
    assert isinstance(found, Image.Image)
    assert np.array_equal(np.asarray(found.convert("RGB")), PIXELS)


def test_fractions_keep_every_digit() -> None:
    exact = np.random.default_rng(1).random((6, 5, 3)).astype(np.float32)
    found = read_image(exact, "image 0")
    assert isinstance(found, torch.Tensor)
    assert torch.equal(found, torch.from_numpy(exact.transpose(2, 0, 1)))


def test_grey_has_three_equal_colours() -> None:
    found = read_image(PIXELS[:, :, 0], "image 0")
    assert isinstance(found, Image.Image)
    assert np.array_equal(np.asarray(found)[:, :, 2], PIXELS[:, :, 0])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"no picture", "image 3: not a picture that can be read"),
        ("no base64!", "image 3: a text that is not base64"),
        (2.0 * PIXELS, "image 3: expected floats of 0..1, got values from"),
        (PIXELS.astype(np.int64) - 1000, "image 3: expected integers of 0..255, got values from"),
        (np.full((6, 5, 3), np.nan), "image 3: expected floats of 0..1"),
        (np.zeros((2, 6, 5, 3), np.uint8), r"image 3: an array of shape \(2, 6, 5, 3\); expected \[H, W, 3\]"),
        (np.zeros((6, 5, 2), np.uint8), r"image 3: an array of shape \(6, 5, 2\)"),
        ([["a"]], "image 3: neither bytes, base64 text nor an array of numbers"),
        (None, "image 3: "),
    ],
)
def test_what_is_no_image_is_refused_by_its_number(image: Any, words: str) -> None:
    with pytest.raises(MlflowException, match=words) as refused:
        read_image(image, "image 3")
    assert refused.value.get_http_status_code() == 400


def test_images_and_their_own_classes_by_row() -> None:
    table = pd.DataFrame({"image": [b"a", b"b"], "classes": [["x", "y"], None]})
    assert columns(table) == ([b"a", b"b"], [("x", "y"), None])
    assert columns({"image": [b"a"]}) == ([b"a"], [None])
    assert columns([b"a", b"b"]) == ([b"a", b"b"], [None, None])
    assert columns(b"a") == ([b"a"], [None])
    assert len(columns(np.stack([PIXELS] * 3))[0]) == 3
    assert len(columns(PIXELS)[0]) == 1


def test_a_row_that_mlflow_made_of_several_images_is_several_rows_again() -> None:
    made = pd.DataFrame([{"image": ["aa", "bb"], "classes": ["x", "y"]}])
    assert columns(made) == (["aa", "bb"], [("x", "y"), ("x", "y")])
    each = pd.DataFrame([{"image": ["aa", "bb"], "classes": [["x", "y"], ["x", "z"]]}])
    assert columns(each)[1] == [("x", "y"), ("x", "z")]
    assert len(columns(pd.DataFrame([{"image": [PIXELS.tolist()] * 2}]))[0]) == 2
    assert len(columns(pd.DataFrame([{"image": PIXELS.tolist()}]))[0]) == 1


def test_wrong_tables_and_classes_are_refused() -> None:
    for given, words in (
        (pd.DataFrame({"picture": [1], "classes": [["x"]]}), "expected a column 'image'"),
        ({"image": [b"a"], "labels": [1]}, "expected a column 'image'"),
        ([], "no image was given"),
        ({"image": [b"a", b"b"], "classes": [["x", "y"]]}, "1 lists for 2 images"),
    ):
        with pytest.raises(MlflowException, match=words):
            columns(given)
    with pytest.raises(MlflowException, match="image 0: give at least two class names"):
        checked_classes(0, ("one",))
    with pytest.raises(MlflowException, match="image 4: a class is named twice"):
        checked_classes(4, ("a", "b", "a"))
    with pytest.raises(MlflowException, match="expected a list of texts"):
        texts("params.classes", [1, 2])
    assert texts("params.classes", np.array(["a", "b"], dtype=object)) == ("a", "b")
    assert texts("params.classes", []) is None
