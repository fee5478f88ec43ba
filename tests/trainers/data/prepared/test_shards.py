"""What a prepared set says of itself, and what `verify` finds wrong with it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.support.prepared import MANY, contents, copied
from trainers.data.prepared.prepare import prepare
from trainers.data.prepared.shards import MANIFEST, faults, read_manifest, shard_size
from trainers.data.stored import load_stored
from trainers.errors import NotPrepared, UserError


def test_a_prepared_set_holds_every_image_once_in_order_and_says_what_it_is(many, whole):
    entry, _ = many
    manifest = read_manifest(whole / MANIFEST)
    assert manifest is not None
    assert manifest.shape == (MANY, 3, 224, 224)
    assert manifest.images_per_shard == 111  # 16 MiB
    assert [(shard.file, shard.images) for shard in manifest.shards] == [
        ("images-00000.npy", 111), ("images-00001.npy", 111), ("images-00002.npy", 78)]  # fmt: skip
    assert manifest.classes == ("banded", "woven")
    assert manifest.templates == ("A surface with a {} texture.",)
    assert "bilinear" in manifest.transform
    assert list(manifest.source["described_by"]) == ["dtd/dtd/labels/test1.txt"]
    assert set(contents(whole)) == {*manifest.files(), MANIFEST}
    images = np.concatenate([np.load(whole / shard.file) for shard in manifest.shards])
    assert [tuple(pixel) for pixel in images[:, :, 100, 100]] == [(i % 256, i // 256, 7) for i in range(MANY)]
    assert np.load(whole / "labels.npy").tolist() == [0 if i % 3 else 1 for i in range(MANY)]
    assert faults(whole, entry) == []


DAMAGE = {
    "a changed byte": lambda folder: _change(folder / "images-00001.npy", 5000),
    "a missing file": lambda folder: (folder / "images-00002.npy").unlink(),
    "a short file": lambda folder: os.truncate(folder / "images-00000.npy", 1000),
    "another label": lambda folder: _change(folder / "labels.npy", -8),
}


def _change(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", DAMAGE)
def test_verify_finds(damage, many, whole, tmp_path):
    entry, _ = many
    folder = copied(whole, tmp_path)
    DAMAGE[damage](folder)
    found = faults(folder, entry)
    assert len(found) == 1
    assert str(folder) in found[0]
    assert ("not there" if damage == "a missing file" else "its SHA-256 is") in found[0]


def test_verify_compares_with_the_table(many, whole, tmp_path):
    entry, _ = many
    assert faults(whole, replace(entry, num_images=301)) == [f"{whole / MANIFEST}: number of images is 300, not 301"]
    assert faults(whole, replace(entry, templates=("a {}.",)))[0].endswith(
        "templates is ('A surface with a {} texture.',), not ('a {}.',)"
    )
    assert faults(tmp_path, entry) == [f"{tmp_path / MANIFEST}: not there; dtd is not prepared"]
    (tmp_path / MANIFEST).write_text('{"format": 1}')
    with pytest.raises(UserError, match=r"manifest\.json: not the manifest of a prepared dataset"):
        faults(tmp_path, entry)


def test_a_set_prepared_by_other_rules_is_refused_with_what_to_do(many, whole, tmp_path, monkeypatch):
    entry, root = many
    monkeypatch.setenv("AGFT_PREPARED", str(whole.parent))
    other = replace(entry, templates=("a {}.",))
    with pytest.raises(NotPrepared, match=r"^data\.train: 'dtd' was prepared differently: templates .*Remove .*/dtd"):
        load_stored(other, "data.train")
    with pytest.raises(UserError, match="was prepared differently: templates"):
        prepare(other, root, whole.parent)


@pytest.mark.parametrize(
    ("images", "size", "each"), [(1_281_167, 224, 7133), (50_000, 224, 1562), (1_880, 224, 111), (10_000, 32, 5461)]
)
def test_a_set_has_about_32_files_of_16_mib_to_1_gib(images, size, each):
    assert shard_size(images, 3 * size**2) == each
    assert images / each <= 180
