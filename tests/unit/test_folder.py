"""Image folders as datasets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from trainers.data import load_dataset
from trainers.errors import UserError


def draw(file: Path, size: tuple[int, int], colour: tuple[int, int, int], *, palette: bool = False) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", size, colour)
    (image.convert("P") if palette else image).save(file)


def test_a_folder_per_class_becomes_a_dataset(tmp_path: Path) -> None:
    draw(tmp_path / "red_fox" / "b.png", (300, 200), (255, 0, 0))
    draw(tmp_path / "red_fox" / "a.png", (10, 40), (255, 0, 0), palette=True)
    draw(tmp_path / "blue-bird" / "x.png", (224, 224), (0, 0, 255))
    (tmp_path / "red_fox" / "notes.txt").write_text("no image")
    images = load_dataset(f"folder:{tmp_path}")
    assert images.classes == ("blue bird", "red fox")
    assert images.labels.tolist() == [0, 1, 1]
    assert images.images.shape == (3, 3, 224, 224)
    expected = torch.tensor([[0, 0, 255], [255, 0, 0], [255, 0, 0]], dtype=torch.uint8)
    assert torch.equal(images.images, expected.view(3, 3, 1, 1).expand(3, 3, 224, 224))
    assert images.prompts()[1] == ["This is a photo of a red fox."]
    assert load_dataset(f"folder:{tmp_path}") is images


def test_the_centre_of_the_long_side_is_kept(tmp_path: Path) -> None:
    wide = Image.new("RGB", (900, 300), (0, 255, 0))
    wide.paste((255, 0, 0), (300, 0, 600, 300))
    (tmp_path / "a").mkdir()
    wide.save(tmp_path / "a" / "wide.png")
    draw(tmp_path / "b" / "x.png", (4, 4), (0, 0, 0))
    centre = load_dataset(f"folder:{tmp_path}").images[0, :, 2:-2, 2:-2]
    assert torch.equal(centre, torch.tensor([255, 0, 0], dtype=torch.uint8).view(3, 1, 1).expand_as(centre))


def test_what_is_no_such_folder_is_refused_with_its_place(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.dev\.0: .*no such folder"):
        load_dataset(f"folder:{tmp_path / 'none'}", "data.dev.0")
    draw(tmp_path / "only" / "x.png", (4, 4), (0, 0, 0))
    with pytest.raises(UserError, match="two or more classes"):
        load_dataset(f"folder:{tmp_path}")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"broken\.png: not a readable image"):
        load_dataset(f"folder:{tmp_path}")
