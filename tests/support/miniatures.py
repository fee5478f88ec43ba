"""Datasets in their real file formats and folders, a few images each: what every reader is held to.

`MINIATURES[name](root)` writes one below `root`. Every image has its own grey level, so that an image in the wrong
place, or with the wrong label, is seen.
"""

from __future__ import annotations

import dataclasses
import io
import json
import struct
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

from trainers.data import DatasetEntry
from trainers.data.names import EUROSAT
from trainers.data.table import FILE_DATASETS


def row(name: str, num_images: int, num_classes: int) -> DatasetEntry:
    """The table's row, with a miniature's counts."""
    return dataclasses.replace(FILE_DATASETS[name], num_images=num_images, num_classes=num_classes)


class Greys:
    """Writes images, each darker than the one before."""

    def __init__(self) -> None:
        self.level = 255

    def __call__(self, file: Path, size: tuple[int, int] = (14, 10)) -> None:
        self.level -= 3
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (self.level, self.level, self.level)).save(file)


def folders(
    root: Path, where: str, names: Iterable[str], *, each: int = 2, pattern: str = "{name}_{number}.JPEG"
) -> None:
    draw = Greys()
    for name in names:
        for number in range(each):
            draw(root / where / name / pattern.format(name=name, number=number))


def caltech101(root: Path) -> None:
    names = ("BACKGROUND_Google", "Faces", "Faces_easy", "Leopards", "cougar_body")
    draw = Greys()
    for name in names:
        for number in (1, 2):
            draw(root / "caltech101/101_ObjectCategories" / name / f"image_{number:04d}.jpg")


def caltech256(root: Path) -> None:
    base, draw = root / "caltech256/256_ObjectCategories", Greys()
    for number, name in enumerate(("ak47", "desk-globe", "dog", "spider", "airplanes-101", "clutter"), 1):
        for image in (1, 2):
            draw(base / f"{number:03d}.{name}" / f"{number:03d}_{image:04d}.jpg")
    draw(base / "003.dog/greg/003_0001.jpg")
    (base / "004.spider/RENAME2").write_text("not a picture")


def dtd(root: Path) -> None:
    base, draw = root / "dtd/dtd", Greys()
    listed = ["polka-dotted/polka-dotted_0007.jpg", "banded/banded_0009.jpg", "banded/banded_0002.jpg"]
    for name in (*listed, "banded/banded_0001.jpg"):
        draw(base / "images" / name)
    (base / "labels").mkdir()
    (base / "labels/test1.txt").write_text("\n".join(listed) + "\n")


def aircraft(root: Path) -> None:
    base, draw = root / "fgvc-aircraft-2013b/data", Greys()
    rows = (("0062765", "737-400"), ("1514522", "F/A-18"), ("0481847", "A340-300"), ("0034309", "737-400"))
    for number, _ in rows:
        draw(base / "images" / f"{number}.jpg")
    (base / "variants.txt").write_text("737-400\nA340-300\nF/A-18\n")
    (base / "images_variant_test.txt").write_text("".join(f"{number} {variant}\n" for number, variant in rows))


def flowers102(root: Path) -> None:
    base, draw = root / "flowers-102", Greys()
    for number in range(1, 6):
        draw(base / "jpg" / f"image_{number:05d}.jpg")
    savemat(base / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 5, 1]], np.uint8)})
    savemat(base / "setid.mat", {"trnid": [[2]], "valid": [[4]], "tstid": np.array([[5, 1, 3]], np.uint16)})


def food101(root: Path) -> None:
    base, draw = root / "food-101", Greys()
    listed = {"ice_cream": ["ice_cream/31", "ice_cream/7"], "apple_pie": ["apple_pie/9"]}
    for name in (*listed["ice_cream"], *listed["apple_pie"]):
        draw(base / "images" / f"{name}.jpg")
    (base / "meta").mkdir()
    (base / "meta/test.json").write_text(json.dumps(listed))


def pets(root: Path) -> None:
    base, draw = root / "oxford-iiit-pet", Greys()
    rows = (
        "saint_bernard_108 3 2 14",
        "Abyssinian_201 1 1 1",
        "american_pit_bull_terrier_9 2 2 2",
        "Abyssinian_202 1 1 1",
    )
    for line in rows:
        draw(base / "images" / f"{line.split()[0]}.jpg")
    (base / "annotations").mkdir()
    (base / "annotations/test.txt").write_text("\n".join(rows) + "\n")


def cars(root: Path) -> None:
    base, draw = root / "stanford_cars", Greys()
    names = ("AM General Hummer SUV 2000", "Ford F-150 Regular Cab 2007", "Ford F-150 Regular Cab 2012")
    rows = np.array(
        [(30, 3, "00001.jpg"), (1, 1, "00002.jpg"), (9, 2, "00003.jpg")],
        dtype=[("bbox_x1", object), ("class", object), ("fname", object)],
    )
    for _, _, file in rows:
        draw(base / "cars_test" / file)
    (base / "devkit").mkdir()
    savemat(base / "devkit/cars_meta.mat", {"class_names": np.array(names, object)})
    savemat(base / "cars_test_annos_withlabels.mat", {"annotations": rows})


def sun397(root: Path) -> None:
    base, draw = root / "SUN397", Greys()
    names = ("/a/abbey", "/a/airplane_cabin", "/c/church/indoor", "/c/church/outdoor")
    for name in reversed(names):
        for number in ("b", "a"):
            draw(base / name[1:] / f"sun_{number}{len(name)}.jpg")
    (base / "ClassName.txt").write_text("\n".join(names) + "\n")
    (base / "README.txt").write_text("about the set")


def imagenet_v2(root: Path) -> None:
    folders(
        root, "imagenetv2-matched-frequency-format-val", map(str, range(12)), each=1, pattern="{name}f{number}.jpeg"
    )


def tiny_imagenet(root: Path) -> None:
    base, draw = root / "tiny-imagenet-200", Greys()
    wnids = ("n02124075", "n01443537", "n02113799")
    (base / "val").mkdir(parents=True)
    (base / "wnids.txt").write_text("\n".join(wnids) + "\n")
    rows = [(f"val_{number}.JPEG", wnids[(7 * number) % 3]) for number in range(4)]
    for file, _ in rows:
        draw(base / "val/images" / file, (64, 64))
    (base / "val/val_annotations.txt").write_text("".join(f"{file}\t{wnid}\t0\t32\t44\t62\n" for file, wnid in rows))
    for wnid in wnids:
        draw(base / "train" / wnid / "images" / f"{wnid}_0.JPEG", (64, 64))
        (base / "train" / wnid / f"{wnid}_boxes.txt").write_text("0 0 1 1\n")


def python2_pickle(values: dict[str, object]) -> bytes:
    """What CIFAR's authors wrote: Python 2's protocol 2, numpy's old module names, text and bytes both as `str`."""

    def written(value: object) -> bytes:
        if isinstance(value, str | bytes):
            raw = value.encode("latin1") if isinstance(value, str) else value
            return b"T" + struct.pack("<i", len(raw)) + raw
        if isinstance(value, int):
            return b"J" + struct.pack("<i", value)
        if isinstance(value, list):
            return b"](" + b"".join(map(written, value)) + b"e"
        if isinstance(value, dict):
            return b"}(" + b"".join(written(key) + written(item) for key, item in value.items()) + b"u"
        assert isinstance(value, np.ndarray)
        rows, columns = value.shape
        empty = (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\n" + written(0) + b"\x85" + written("b") + b"\x87R"
        )
        kind = b"cnumpy\ndtype\n" + written("u1") + written(0) + written(1) + b"\x87R"
        kind += b"(" + written(3) + written("|") + b"NNN" + written(-1) + written(-1) + written(0) + b"tb"
        return (
            empty + b"(" + written(1) + written(rows) + written(columns) + b"\x86" + kind + b"\x89"
            + written(value.tobytes()) + b"tb"
        )  # fmt: skip

    return b"\x80\x02" + written(values) + b"."


def cifar_pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (number, 3072), dtype=np.uint8)


def cifar(root: Path, *, hundred: bool) -> None:
    base = root / ("cifar-100-python" if hundred else "cifar-10-batches-py")
    base.mkdir(parents=True)
    pixels, names = cifar_pixels(5), ["aquarium_fish", "apple", "baby"]
    fine, coarse = ("fine_labels", "fine_label_names"), ("coarse_labels", "coarse_label_names")
    labels, key = fine if hundred else ("labels", "label_names")
    content: dict[str, object] = {"data": pixels, labels: [2, 0, 1, 1, 0], "filenames": ["a.png"] * 5}
    meta: dict[str, object] = {key: names}
    if hundred:
        content[coarse[0]], meta[coarse[1]] = [0] * 5, ["all"]
    (base / ("test" if hundred else "test_batch")).write_bytes(python2_pickle(content))
    (base / ("meta" if hundred else "batches.meta")).write_bytes(python2_pickle(meta))


def stl10(root: Path) -> None:
    base = root / "stl10_binary"
    base.mkdir(parents=True)
    np.random.default_rng(1).integers(0, 256, (4, 3, 96, 96), dtype=np.uint8).tofile(base / "test_X.bin")
    np.array([2, 10, 1, 2], np.uint8).tofile(base / "test_y.bin")
    names = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
    (base / "class_names.txt").write_text("\n".join(names) + "\n")


def pcam(root: Path) -> None:
    import h5py

    base = root / "pcam"
    base.mkdir(parents=True)
    pixels = np.random.default_rng(2).integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)
    for part, key, values in (("x", "x", pixels), ("y", "y", np.array([1, 0, 1], np.uint8).reshape(3, 1, 1, 1))):
        with h5py.File(base / f"camelyonpatch_level_2_split_test_{part}.h5", "w") as file:
            file.create_dataset(key, data=values)


def palette_png() -> bytes:
    """A picture with a palette, whose pixels cannot be averaged before they are colours."""
    image = Image.new("P", (300, 260))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putdata([(x // 3 + y // 5) % 2 for y in range(260) for x in range(300)])
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


WNIDS = ("n02113186", "n01440764", "n02963159")  # Cardigan the dog, tench, cardigan the garment

MINIATURES: dict[str, tuple[Callable[[Path], None], int, int]] = {
    "caltech101": (caltech101, 8, 3),
    "caltech256": (caltech256, 12, 6),
    "cifar10": (partial(cifar, hundred=False), 5, 3),
    "cifar100": (partial(cifar, hundred=True), 5, 3),
    "dtd": (dtd, 3, 2),
    "eurosat": (partial(folders, where="eurosat/2750", names=EUROSAT, pattern="{name}_{number}.jpg"), 20, 10),
    "fgvc-aircraft": (aircraft, 4, 3),
    "flowers102": (flowers102, 3, 102),
    "food101": (food101, 3, 2),
    "imagenet": (partial(folders, where="imagenet/val", names=WNIDS), 6, 3),
    "oxford-pets": (pets, 4, 3),
    "pcam": (pcam, 3, 2),
    "stanford-cars": (cars, 3, 3),
    "stl10": (stl10, 4, 10),
    "sun397": (sun397, 8, 4),
    "imagenet-train": (partial(folders, where="imagenet/train", names=WNIDS), 6, 3),
    "tiny-imagenet": (tiny_imagenet, 4, 3),
    "tiny-imagenet-train": (tiny_imagenet, 3, 3),
    "imagenet-r": (partial(folders, where="imagenet-r", names=WNIDS, pattern="art_{number}.jpg"), 6, 3),
    "imagenet-sketch": (partial(folders, where="sketch", names=WNIDS, pattern="sketch_{number}.JPEG"), 6, 3),
    "imagenet-a": (partial(folders, where="imagenet-a", names=WNIDS, pattern="0.00_{number}.jpg"), 6, 3),
    "imagenet-v2": (imagenet_v2, 12, 12),
    "country211": (
        partial(folders, where="country211/test", names=("AD", "CD", "CG", "XK"), pattern="{name}_{number}.jpg"), 8, 4),
}  # fmt: skip
"""What writes a miniature, and how many images and classes it has."""


def made(name: str, root: Path) -> DatasetEntry:
    """The miniature below `root`, and its row."""
    make, images, classes = MINIATURES[name]
    make(root)
    return row(name, images, classes)
