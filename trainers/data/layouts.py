"""How each dataset lies on disk: the folders that torchvision's classes and the official archives make.

Read here and not through torchvision's classes, because these want every split and its MD5 (CIFAR's training batches,
2.6 GB of unlabelled STL10) to read one, and take files in the file system's order (SUN397). Tests hold every reader
to torchvision's class on the same files. Order: that of the split's own list, else sorted by class and file name.

A missing file is an OSError; what is in a file and should not be is a UserError.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from trainers.data.base import RawSet
from trainers.data.names import (
    EUROSAT,
    FLOWERS,
    IMAGENET_NAMED_BY,
    NAMED_HERE,
    aircraft_name,
    caltech256_name,
    car_name,
    country_name,
    imagenet_names,
    refine,
)
from trainers.data.pictures import images_in_folders
from trainers.errors import UserError


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a text file ({error})") from error


def _rows(path: Path, columns: int, separator: str | None = None) -> list[list[str]]:
    """The lines of a text file, each split into so many columns."""
    rows = [line.strip().split(separator, columns - 1) for line in _text(path).splitlines() if line.strip()]
    for number, row in enumerate(rows, 1):
        if len(row) != columns:
            raise UserError(f"{path}: line {number}: {' '.join(row)!r} has {len(row)} columns, not {columns}")
    return rows


def _label(number: str, path: Path) -> int:
    """A label that a file counts from 1."""
    if not number.isdigit() or int(number) < 1:
        raise UserError(f"{path}: {number!r} is no class number (from 1)")
    return int(number) - 1


def caltech101(root: Path) -> RawSet:
    """`Faces` and `Faces_easy`, the first two folders, are one class."""
    names, files, labels = images_in_folders(root / "caltech101/101_ObjectCategories", skip=("BACKGROUND_Google",))
    if names[:2] != ["Faces", "Faces_easy"]:
        raise UserError(f"{root}/caltech101/101_ObjectCategories: the first folders are {names[:2]}, not the two Faces")
    return RawSet(files, [max(0, label - 1) for label in labels], ("person", *map(refine, names[2:])))


def caltech256(root: Path) -> RawSet:
    """Only the numbered pictures directly in a folder: `056.dog` holds another folder, `198.spider` a stray file."""
    folder = root / "caltech256/256_ObjectCategories"
    names = sorted(each.name for each in folder.iterdir() if each.is_dir())
    files = [(file, label) for label, name in enumerate(names) for file in sorted((folder / name).glob("*.jpg"))]
    return RawSet([file for file, _ in files], [label for _, label in files], tuple(map(caltech256_name, names)))


def dtd(root: Path) -> RawSet:
    """The first of ten splits."""
    base = root / "dtd/dtd"
    listed = base / "labels/test1.txt"
    rows = _rows(listed, 2, "/")
    names = sorted({name for name, _ in rows})
    files = [base / "images" / name / file for name, file in rows]
    return RawSet(files, [names.index(name) for name, _ in rows], tuple(map(refine, names)), (listed,))


def eurosat(root: Path) -> RawSet:
    names, files, labels = images_in_folders(root / "eurosat/2750")
    if names != list(EUROSAT):
        raise UserError(f"{root}/eurosat/2750: its folders are {', '.join(names)}, not {', '.join(EUROSAT)}")
    return RawSet(files, labels, tuple(EUROSAT.values()), named_by=NAMED_HERE)


def aircraft(root: Path) -> RawSet:
    """By variant, the finest of three levels."""
    base = root / "fgvc-aircraft-2013b/data"
    named, listed = base / "variants.txt", base / "images_variant_test.txt"
    variants = [row[0] for row in _rows(named, 1, "\n")]
    rows = _rows(listed, 2)
    labels = [_index(variants, variant, listed) for _, variant in rows]
    files = [base / "images" / f"{number}.jpg" for number, _ in rows]
    return RawSet(files, labels, tuple(map(aircraft_name, variants)), (named, listed))


def _index(names: list[str], name: str, path: Path) -> int:
    if name not in names:
        raise UserError(f"{path}: {name!r} is none of the {len(names)} classes")
    return names.index(name)


def flowers102(root: Path) -> RawSet:
    base = root / "flowers-102"
    split, labelled = base / "setid.mat", base / "imagelabels.mat"
    numbers = _mat(split, "tstid").tolist()
    labels = _mat(labelled, "labels").tolist()
    for number in numbers:
        if not 1 <= number <= len(labels):
            raise UserError(f"{split}: image {number} has no label among the {len(labels)} of {labelled}")
    files = [base / "jpg" / f"image_{number:05d}.jpg" for number in numbers]
    return RawSet(files, [int(labels[number - 1]) - 1 for number in numbers], FLOWERS, (split, labelled), NAMED_HERE)


def _mat(path: Path, key: str, *fields: str) -> Any:
    """One variable of a MATLAB file, as a flat array; of structures with these fields, if any are named."""
    import numpy as np
    from scipy.io import loadmat

    with path.open("rb") as file:  # an OSError with the path, where loadmat would look for other names
        try:
            found = np.atleast_1d(loadmat(file, squeeze_me=True)[key])
            return found[list(fields)] if fields else found
        except Exception as error:  # scipy's own errors have no common base
            raise UserError(f"{path}: not the MATLAB file that it should be ({error})") from error


def cars(root: Path) -> RawSet:
    base = root / "stanford_cars"
    named, labelled = base / "devkit/cars_meta.mat", base / "cars_test_annos_withlabels.mat"
    names = [str(name) for name in _mat(named, "class_names").tolist()]
    rows = _mat(labelled, "annotations", "class", "fname")
    files = [base / "cars_test" / str(row["fname"]) for row in rows]
    return RawSet(files, [int(row["class"]) - 1 for row in rows], tuple(map(car_name, names)), (named, labelled))


def food101(root: Path) -> RawSet:
    listed = root / "food-101/meta/test.json"
    try:
        by_class: dict[str, list[str]] = json.loads(_text(listed))
        names = sorted(by_class.keys())
    except (ValueError, AttributeError) as error:
        raise UserError(f"{listed}: not a list of files by class in JSON ({error})") from error
    rows = [(name, file) for name, files in by_class.items() for file in files]
    files = [root / "food-101/images" / f"{file}.jpg" for _, file in rows]
    return RawSet(files, [names.index(name) for name, _ in rows], tuple(map(refine, names)), (listed,))


def pets(root: Path) -> RawSet:
    base = root / "oxford-iiit-pet"
    listed = base / "annotations/test.txt"
    rows = _rows(listed, 4)
    labels = [_label(number, listed) for _, number, _, _ in rows]
    by_label = {label: row[0].rpartition("_")[0] for row, label in zip(rows, labels, strict=True)}
    names = tuple(refine(by_label[label]) for label in sorted(by_label))
    return RawSet([base / "images" / f"{row[0]}.jpg" for row in rows], labels, names, (listed,))


def sun397(root: Path) -> RawSet:
    base = root / "SUN397"
    named = base / "ClassName.txt"
    names = [row[0][3:] for row in _rows(named, 1, "\n")]  # `/c/church/indoor` -> `church/indoor`
    files = sorted(base.rglob("sun_*.jpg"))
    found = ["/".join(file.relative_to(base).parts[1:-1]) for file in files]
    where = {name: label for label, name in enumerate(names)}
    for file, name in zip(files, found, strict=True):
        if name not in where:
            raise UserError(f"{file}: {name!r} is none of the classes of {named}")
    return RawSet(files, [where[name] for name in found], tuple(map(refine, names)), (named,))


def country211(root: Path) -> RawSet:
    names, files, labels = images_in_folders(root / "country211/test")
    return RawSet(files, labels, tuple(map(country_name, names)), named_by="the list in trainers.data.countries")


def wnid_folders(root: Path, folder: str) -> RawSet:
    """A folder for every WordNet number: ImageNet, its variants, Tiny ImageNet's training split."""
    names, files, labels = images_in_folders(root / folder)
    return RawSet(files, labels, imagenet_names(names), named_by=IMAGENET_NAMED_BY)


def imagenet_val(root: Path) -> RawSet:
    """A folder a WordNet number, as torchvision sorts the images; or all in one folder and Kaggle's list of labels."""
    folder, listed = root / "imagenet/val", root / "imagenet/LOC_val_solution.csv"
    if not listed.is_file() or any(each.is_dir() for each in folder.iterdir()):
        return wnid_folders(root, "imagenet/val")
    rows = sorted((file, boxes.partition(" ")[0]) for file, boxes in _rows(listed, 2, ",")[1:])
    wnids = sorted({wnid for _, wnid in rows})
    labels = [wnids.index(wnid) for _, wnid in rows]
    files = [folder / f"{file}.JPEG" for file, _ in rows]
    return RawSet(files, labels, imagenet_names(wnids), (listed,), IMAGENET_NAMED_BY)


def imagenet_v2(root: Path) -> RawSet:
    """Folders `0` to `999`, which are label numbers."""
    folder = root / "imagenetv2-matched-frequency-format-val"
    names, files, labels = images_in_folders(folder)
    if sorted(names, key=lambda name: name.zfill(4)) != [str(label) for label in range(len(names))]:
        raise UserError(f"{folder}: its folders are not the label numbers 0 to {len(names) - 1}")
    rows = sorted((int(names[label]), file) for file, label in zip(files, labels, strict=True))
    labels, names = [label for label, _ in rows], list(imagenet_names()[: len(names)])
    return RawSet([file for _, file in rows], labels, tuple(names), named_by=IMAGENET_NAMED_BY)


def tiny_imagenet_val(root: Path) -> RawSet:
    """Labels in a list, as in the archive, or folders, as some scripts lay it out afterwards."""
    base = root / "tiny-imagenet-200"
    listed, numbers = base / "val/val_annotations.txt", base / "wnids.txt"
    wnids = sorted(row[0] for row in _rows(numbers, 1))
    if not (base / "val/images").is_dir():
        return wnid_folders(root, "tiny-imagenet-200/val")
    rows = sorted(row[:2] for row in _rows(listed, 6))
    labels = [_index(wnids, wnid, listed) for _, wnid in rows]
    files = [base / "val/images" / file for file, _ in rows]
    return RawSet(files, labels, imagenet_names(wnids), (listed, numbers), IMAGENET_NAMED_BY)
