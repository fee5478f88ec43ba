"""Image folders as datasets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from tests.support.miniatures import made
from trainers.data import load_dataset, not_ready
from trainers.data.folder import folder_entry
from trainers.data.prepared.prepare import prepare
from trainers.data.stored import load_stored
from trainers.errors import NotPrepared, UserError


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


def test_a_folder_of_a_sets_own_images_is_that_set_and_what_torchvision_reads(tmp_path, monkeypatch):
    entry = made("eurosat", tmp_path)
    monkeypatch.setenv("AGFT_DATA", str(tmp_path))
    folder, theirs = load_dataset(f"folder:{tmp_path}/eurosat/2750"), load_stored(entry)
    assert torch.equal(folder.images[:], theirs.images[:])
    assert torch.equal(folder.labels, theirs.labels)
    crop = Compose([Resize(224, InterpolationMode.BILINEAR), CenterCrop(224), PILToTensor()])
    for index, (image, label) in enumerate(ImageFolder(str(tmp_path / "eurosat/2750"), crop)):
        assert torch.equal(folder.images[index], image)
        assert folder.labels[index] == label


def test_hidden_files_and_folders_are_no_images(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/y.png", ".cache/z.png", "a/.thumbnails.png"):
        draw(tmp_path / name, (4, 4), (0, 0, 0))
    (tmp_path / "a/._x.png").write_bytes(b"what macOS leaves in archives")
    assert load_dataset(f"folder:{tmp_path}").labels.tolist() == [0, 1]


def test_a_large_folder_asks_to_be_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr("trainers.data.stored.IN_MEMORY_BYTES", 2 * 150_528)
    monkeypatch.setenv("AGFT_PREPARED", str(tmp_path / "prepared"))
    folder = tmp_path / "my pets"
    for name in ("a/x.png", "b/y.png", "b/z.png"):
        draw(folder / name, (4, 4), (0, 0, 0))
    message = (
        f"data.train: 'folder:{folder}' is not prepared (looked in {tmp_path}/prepared); "
        f"run: agft data prepare 'folder:{folder}'"
    )
    assert not_ready({"data.train": f"folder:{folder}"}) == [message]
    with pytest.raises(NotPrepared) as caught:
        load_dataset(f"folder:{folder}", "data.train")
    assert str(caught.value) == message
    assert not_ready({"data.dev.0": f"folder:{tmp_path}/none"}) == [
        f"data.dev.0: 'folder:{tmp_path}/none': no such folder"
    ]
    prepare(folder_entry(f"folder:{folder}", "x"), tmp_path, tmp_path / "prepared")
    assert not_ready({"data.train": f"folder:{folder}"}) == []
    assert load_dataset(f"folder:{folder}").labels.tolist() == [0, 1, 1]
    entry = folder_entry(f"folder:{folder}", "x")
    (folder / "a/x.png").unlink()
    with pytest.raises(UserError, match=r"^folder:.*a/x\.png: no such file; 1 of 3 images are missing"):
        prepare(entry, tmp_path, tmp_path / "again")
