"""Image folders as datasets: what is a class and a picture, what is left out, what is refused."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision.datasets import DatasetFolder, ImageFolder
from torchvision.datasets.folder import default_loader
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from tests.support.miniatures import made
from tests.support.pictures import drawn, folder_of
from trainers.data import load_dataset, not_ready, remarks, safe_name
from trainers.data.folder import folder_entry
from trainers.data.pictures import SUFFIXES
from trainers.data.prepared.prepare import prepare
from trainers.data.prepared.shards import MANIFEST, read_manifest
from trainers.data.stored import load_stored, read_raw
from trainers.errors import NotPrepared, UserError
from trainers.evaluation.summary import dataset_facts


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


# Folders. Each row makes one beside two good classes, and says what is left out of it, or why it is refused.


def two_classes(root: Path) -> Path:
    for name in ("a", "b"):
        (root / name).mkdir(parents=True, exist_ok=True)
        drawn("RGB", (9, 9), 0).save(root / name / "0.png")
    return root


def copied(*names: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes((root / "a/0.png").read_bytes())

    return make


def linked(**links: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for name, target in links.items():
            (root / "a" / name).symlink_to(target)

    return make


LEFT_OUT: dict[str, tuple[Callable[[Path], None], str, int]] = {
    "a notebook's copies": (copied("a/.ipynb_checkpoints/0-checkpoint.png"), "1 .ipynb_checkpoints", 2),
    "a notebook's copies as a class": (copied(".ipynb_checkpoints/0.png"), "1 .ipynb_checkpoints", 2),
    "macOS": (copied("__MACOSX/a/._0.png", "a/._0.png", "a/.DS_Store"), "1 .DS_Store, 1 ._* of macOS, 1 __MACOSX", 2),
    "Windows": (copied("a/Thumbs.db", "b/desktop.ini", "$RECYCLE.BIN/x.png"), "1 $RECYCLE.BIN, 1 Thumbs.db", 2),
    "a storage box, deep": (copied("a/deep/er/@eaDir/x.png", "a/deep/er/x.PNG"), "1 @eaDir", 3),
    "what is no picture": (copied("a/x.txt", "a/y.TXT", "b/README"), "2 *.txt, 1 without a suffix", 2),
    "pictures that are not read": (copied("a/x.heic", "a/y.svg", "a/z.pdf"), "1 *.heic, 1 *.pdf, 1 *.svg", 2),
    "beside the classes": (copied("x.png", "labels.csv"), "2 beside the class folders", 2),
    "a link that leads back": (linked(up="..", here="."), "2 links that lead back", 2),
    "a link to itself": (linked(itself="itself"), "1 without a suffix", 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", LEFT_OUT)
def test_what_is_no_picture_of_a_class_is_left_out_anywhere_and_counted(kind, tmp_path):
    make, left_out, taken = LEFT_OUT[kind]
    make(two_classes(tmp_path))
    entry = folder_entry(f"folder:{tmp_path}", "data.train")
    assert entry.num_images == taken
    assert left_out in entry.remarks[0]
    assert not_ready({"data.train": entry.name}) == []


def test_links_are_followed_as_by_torchvision(tmp_path):
    """To a picture, to a folder of pictures, to a class."""
    folder_of(tmp_path / "elsewhere", 12)
    root = two_classes(tmp_path / "pictures")
    (root / "a/one.png").symlink_to("0.png")
    (root / "b/more").symlink_to(tmp_path / "elsewhere/red fox")
    (root / "c").symlink_to("a")
    theirs = DatasetFolder(str(root), default_loader, extensions=tuple(SUFFIXES))
    ours = read_raw(folder_entry(f"folder:{root}", "x"), tmp_path)
    assert [(str(path), label) for path, label in zip(ours.images, ours.labels, strict=True)] == theirs.samples
    assert len(theirs.samples) > 6


def splits(*names: str) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for each in "ab":
            (root / each / "0.png").unlink()
            (root / each).rmdir()
        for name in names:
            two_classes(root / name)

    return make


def sockets(root: Path) -> None:
    here = Path.cwd()
    os.chdir(root / "a")  # a socket's address is short
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind("s.png")
    finally:
        os.chdir(here)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "an empty class": (lambda root: (root / "nothing").mkdir(), "1 of 3 sub-folders hold no picture: 'nothing'"),
    "two empty classes": (copied("c/x.txt", "d/e/.x.png"), "2 of 4 sub-folders hold no picture: 'c', 'd'; fill or "
                          "remove them; left out: 1 *.txt, 1 .x.png"),
    "a class of what is not read": (copied("c/x.heic"), "'c'; fill or remove them; left out: 1 *.heic"),
    "train and val": (splits("train", "val"), "train, val are splits of a dataset, not classes; name one: "),
    "Training, Validation and test": (splits("Training", "Validation", "test"), "are splits of a dataset"),
    "a pipe": (lambda root: os.mkfifo(root / "a/pipe.png"), "a/pipe.png: a named pipe, no file"),
    "a socket": (sockets, "a/s.png: a device or socket, no file"),
    "a link to nothing": (linked(**{"x.png": "y.png"}), "a/x.png: a link to y.png, which is not there"),
    "a link to a device": (linked(**{"x.png": "/dev/zero"}), "a/x.png: a device or socket, no file"),
    "a name that says nothing": (copied("_-_/x.png"), "the sub-folder '_-_' is no name of a class"),
    "a name that is no text": (copied("\udcff/x.png"), r"the sub-folder '\udcff' is no name of a class"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_folders_that_are_not_what_they_seem_are_refused_before_anything_is_opened(kind, tmp_path):
    make, rule = REFUSED[kind]
    make(two_classes(tmp_path))
    (message,) = not_ready({"data.train": f"folder:{tmp_path}"})
    assert message.startswith(f"data.train: 'folder:{tmp_path}': ")
    assert rule in message


def test_train_and_test_are_classes_where_pictures_lie_in_them(tmp_path):
    copied("train/x.png", "test/x.png")(two_classes(tmp_path))
    assert folder_entry(f"folder:{tmp_path}", "x").num_classes == 4


def test_preparing_and_planning_say_what_was_taken_which_prompts_are_equal_and_which_classes_are_small(tmp_path):
    copied("Red cube/x.png", "red-cube/x.png", "red_cube/x.png", "red_cube/x.txt")(two_classes(tmp_path / "pictures"))
    expected = [
        "5 pictures of 5 classes taken; left out: 1 *.txt",
        "3 classes cannot be told apart, their prompts are equal: 'Red cube' = 'red-cube' = 'red_cube'",
        "5 of 5 classes have fewer than 10 pictures (the smallest 1): 'Red cube', 'a', 'b', 'red-cube', 'red_cube'",
    ]
    name = f"folder:{tmp_path / 'pictures'}"
    assert remarks({"data.train": name, "data.dev.0": f"folder:{tmp_path / 'none'}", "x": "tiny-shapes"}) == [
        f"data.train: {line}" for line in expected
    ]
    said: list[str] = []
    prepare(folder_entry(name, "x"), tmp_path, tmp_path / "out", say=said.append)
    alike = ((0, 3, 4),)
    assert read_manifest(tmp_path / "out" / safe_name(name) / MANIFEST).duplicate_prompts == alike
    assert dataset_facts(load_dataset(name), torch.arange(5), None).duplicate_prompts == alike, "in the record"
    assert [line for line in said if line.removeprefix(f"{name}: ") in expected] == [f"{name}: {x}" for x in expected]
