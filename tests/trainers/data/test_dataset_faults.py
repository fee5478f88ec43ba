"""What is missing, of another number or damaged in a dataset's files: one message with the set's name and the path."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from tests.support.miniatures import MINIATURES, made, row
from trainers.data import DatasetEntry
from trainers.data.prepared.prepare import prepare
from trainers.data.stored import load_stored, read_raw
from trainers.data.table import FILE_DATASETS
from trainers.errors import UserError


def refused(entry: DatasetEntry, root: Path) -> str:
    """What `prepare` says; it leaves no set behind."""
    with pytest.raises(UserError) as caught:
        prepare(entry, root, root / "out")
    message = str(caught.value)
    assert "\n" not in message
    assert not (root / "out" / entry.name / "manifest.json").exists()
    return message


@pytest.mark.parametrize("name", MINIATURES)
def test_files_that_are_not_there_are_named(name, tmp_path):
    entry = made(name, tmp_path)
    assert entry.files is not None
    for missing in (*read_raw(entry, tmp_path).described_by, tmp_path / entry.files.marker):
        missing.rename(tmp_path / "elsewhere")
        message = refused(entry, tmp_path)
        assert message.startswith(f"{name}: {missing}")
        assert "no such file" in message
        (tmp_path / "elsewhere").rename(missing)
    read_raw(entry, tmp_path)


@pytest.mark.parametrize("name", MINIATURES)
def test_another_number_of_images_or_classes_is_refused_with_both_numbers(name, tmp_path):
    entry = made(name, tmp_path)
    assert entry.files is not None
    images, classes, marker = entry.num_images, entry.num_classes, tmp_path / entry.files.marker
    for found, wanted, what in ((images, images + 1, "images"), (classes, classes + 1, "classes")):
        rule = f"{name}: {marker}: {found} {what}, where {name} ({entry.split}) has {wanted}; an unfinished download"
        other = row(name, wanted, classes) if what == "images" else row(name, images, wanted)
        assert refused(other, tmp_path).startswith(rule)
    assert "are there files of something else?" in refused(row(name, images - 1, classes), tmp_path)


@pytest.mark.parametrize("name", MINIATURES)
def test_an_image_that_is_damaged_is_named_by_its_file(name, tmp_path):
    entry = made(name, tmp_path)
    images = read_raw(entry, tmp_path).images
    files = images if isinstance(images, list) else []
    del images  # an HDF5 file that is open already would be read as it was
    if files:
        damaged, reason = files[1], "not a readable image (no picture, or of no format"
        damaged.write_bytes(b"no picture")
    else:
        damaged, reason = {
            "cifar10": (tmp_path / "cifar-10-batches-py/test_batch", "not a CIFAR file (pickle data was truncated)"),
            "cifar100": (tmp_path / "cifar-100-python/test", "not a CIFAR file (pickle data was truncated)"),
            "stl10": (tmp_path / "stl10_binary/test_X.bin", "110,582 bytes are no whole number of 96 x 96 images"),
            "pcam": (tmp_path / "pcam/camelyonpatch_level_2_split_test_x.h5", "not PCAM's HDF5 file (Unable to"),
        }[name]
        damaged.write_bytes(damaged.read_bytes()[:-10])
    message = refused(entry, tmp_path)
    assert str(damaged) in message
    assert reason in message


WRONG: dict[str, tuple[str, bytes, str]] = {
    "fgvc-aircraft": ("fgvc-aircraft-2013b/data/images_variant_test.txt", b"0062765 747-999\n", "'747-999' is none of"),
    "food101": ("food-101/meta/test.json", b"{", "not a list of files by class in JSON"),
    "oxford-pets": ("oxford-iiit-pet/annotations/test.txt", b"Abyssinian_201 one 1 1\n", "'one' is no class number"),
    "flowers102": ("flowers-102/setid.mat", b"not MATLAB", "not the MATLAB file"),
    "stanford-cars": ("stanford_cars/cars_test_annos_withlabels.mat", b"not MATLAB", "not the MATLAB file"),
    "cifar10": ("cifar-10-batches-py/test_batch", pickle.dumps([1]), "not a CIFAR file (it holds a list)"),
    "cifar100": ("cifar-100-python/meta", pickle.dumps({"fine_label_names": [1]}), "no list 'fine_label_names' of str"),
    "stl10": ("stl10_binary/test_X.bin", b"", "0 bytes are no whole number of 96 x 96 images"),
    "pcam": ("pcam/camelyonpatch_level_2_split_test_y.h5", b"", "not PCAM's HDF5 file"),
    "dtd": ("dtd/dtd/labels/test1.txt", b"banded\n", "line 1: 'banded' has 1 columns, not 2"),
    "sun397": ("SUN397/ClassName.txt", b"/a/abbey\xff\n", "not a text file ('utf-8' codec can't decode byte 0xff"),
    "tiny-imagenet": ("tiny-imagenet-200/val/val_annotations.txt", b"a\tn1\t0\t0\t1\t1\n", "'n1' is none of the 3"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_file_that_is_not_what_it_should_be_is_named(name, tmp_path):
    entry = made(name, tmp_path)
    file, content, message = WRONG[name]
    (tmp_path / file).write_bytes(content)
    found = refused(entry, tmp_path)
    assert found.startswith(f"{name}: {tmp_path / file}: ")
    assert message in found


def test_numbers_of_images_that_have_no_label_are_refused(tmp_path):
    entry = made("flowers102", tmp_path)
    file = tmp_path / "flowers-102/setid.mat"
    for number in (0, 6):
        savemat(file, {"tstid": np.array([[1, number]])})
        assert f"{file}: image {number} has no label among the 5 of" in refused(entry, tmp_path)


def test_annotations_without_labels_are_no_replacement(tmp_path):
    """Those of Stanford Cars' own development kit."""
    entry = made("stanford-cars", tmp_path)
    file = tmp_path / "stanford_cars/cars_test_annos_withlabels.mat"
    savemat(file, {"annotations": np.array([("00001.jpg",)], dtype=[("fname", object)])})
    assert f"{file}: not the MATLAB file that it should be" in refused(entry, tmp_path)


def test_labels_that_no_class_has_are_refused(tmp_path):
    entry = made("stl10", tmp_path)
    (tmp_path / "stl10_binary/test_y.bin").write_bytes(bytes([2, 0, 1, 2]))
    assert "test_X.bin: label -1 is none of 0 to 9" in refused(entry, tmp_path)


def test_hdf5_of_another_shape_or_damaged_inside_is_refused(tmp_path):
    import h5py

    entry = made("pcam", tmp_path)
    path, new = tmp_path / "pcam/camelyonpatch_level_2_split_test_x.h5", tmp_path / "new.h5"
    with h5py.File(new, "w") as file:
        file["x"] = np.zeros((3, 96, 96, 3), np.float32)
    new.replace(path)
    assert f"{path}: its x is float32 (3, 96, 96, 3), not uint8 (N, 96, 96, 3)" in refused(entry, tmp_path)
    with h5py.File(new, "w") as file:
        pixels = np.random.default_rng(0).integers(0, 256, (3, 96, 96, 3), np.uint8)
        where = file.create_dataset("x", data=pixels, chunks=(1, 96, 96, 3), compression="gzip").id.get_chunk_info(1)
    content = bytearray(new.read_bytes())
    content[where.byte_offset : where.byte_offset + where.size] = bytes(where.size)
    new.write_bytes(content)
    new.replace(path)
    assert f"{path}: images slice(0, 3, None) cannot be read (" in refused(entry, tmp_path)


def test_without_h5py_pcam_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(UserError, match=r"pcam: its files are HDF5, and h5py is not installed: pip install"):
        read_raw(FILE_DATASETS["pcam"], tmp_path)


def test_a_small_set_that_is_decoded_at_its_use_names_the_place_in_the_study(tmp_path, monkeypatch):
    entry = made("eurosat", tmp_path)
    monkeypatch.setenv("AGFT_DATA", str(tmp_path))
    file = tmp_path / "eurosat/2750/River/River_0.jpg"
    for change, rule in ((lambda: file.write_bytes(b""), "not a readable image"), (file.unlink, "has 20")):
        change()
        with pytest.raises(UserError, match=rf"^data\.dev\.0: .*{rule}"):
            load_stored(entry, "data.dev.0")


class Harmful:
    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("harmed"),)


def test_a_cifar_file_that_would_run_code_is_refused_unrun(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    entry = made("cifar10", tmp_path)
    (tmp_path / "cifar-10-batches-py/test_batch").write_bytes(pickle.dumps({"data": Harmful()}, protocol=2))
    with pytest.raises(UserError, match=r"not a CIFAR file .*which no CIFAR file does"):
        read_raw(entry, tmp_path)
    assert not (tmp_path / "harmed").exists()


def test_folders_that_are_no_class_are_named(tmp_path):
    for name, folder, message in (
        ("imagenet-r", "imagenet-r/n99999999", "'n99999999' is none of ImageNet's 1000 classes"),
        ("country211", "country211/test/QQ", "'QQ' is no country code"),
        ("eurosat", "eurosat/2750/Extra", "its folders are AnnualCrop, Extra"),
        ("imagenet-v2", "imagenetv2-matched-frequency-format-val/77", "not the label numbers 0 to 12"),
    ):
        entry = made(name, tmp_path)
        (tmp_path / folder).mkdir()
        with pytest.raises(UserError, match=message):
            read_raw(entry, tmp_path)
