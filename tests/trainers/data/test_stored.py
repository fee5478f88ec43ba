"""Loading a dataset: prepared here, prepared elsewhere, or small and decoded."""

from __future__ import annotations

import hashlib
import os
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support.miniatures import MINIATURES, made, row
from tests.support.prepared import MANY, copied
from tests.support.small import datasets_with
from trainers import data
from trainers.data import load_dataset, not_ready
from trainers.data.prepared.decode import decode
from trainers.data.prepared.prepare import prepare
from trainers.data.prepared.remote import FETCHERS
from trainers.data.prepared.shards import MANIFEST
from trainers.data.stored import load_stored, read_raw
from trainers.errors import NotPrepared, UserError


def test_a_loaded_set_is_the_decoded_one_row_for_row(many, whole, monkeypatch):
    entry, root = many
    monkeypatch.setenv("AGFT_PREPARED", str(whole.parent))
    loaded = load_stored(entry)
    assert len(loaded) == len(loaded.images) == MANY
    assert loaded.images.shape == (MANY, 3, 224, 224)
    raw = read_raw(entry, root)
    for index in (torch.tensor([299, 0, 111, 110, 0, -1]), torch.zeros(0, dtype=torch.int64), slice(109, 113)):
        rows = torch.arange(MANY)[index]
        expected = [torch.from_numpy(decode(raw.images[int(i)], "224", 224)) for i in rows]
        found = loaded.images[index]
        assert found.dtype == torch.uint8
        assert found.shape == (len(rows), 3, 224, 224)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    assert torch.equal(loaded.images[5], loaded.images[torch.tensor([5])][0])
    mask = torch.zeros(MANY, dtype=torch.bool)
    mask[[3, 250]] = True
    assert torch.equal(loaded.images[mask], loaded.images[torch.tensor([3, 250])])
    found = loaded.images[torch.tensor([7])]
    found.zero_()
    assert loaded.images[7].any(), "what is returned is a copy"
    with pytest.raises(IndexError, match="dtd has 300 images; asked for 300 to 300"):
        loaded.images[torch.tensor([300])]


def test_hashes_of_a_prepared_set_are_those_of_its_images_without_reading_them(many, whole, monkeypatch):
    entry, _ = many
    monkeypatch.setenv("AGFT_PREPARED", str(whole.parent))
    loaded = load_stored(entry)
    monkeypatch.setattr(type(loaded.images), "__getitem__", lambda *_: pytest.fail("an image was read"))
    hashes, content = loaded.image_hashes(), loaded.content_hash
    monkeypatch.undo()
    monkeypatch.setenv("AGFT_PREPARED", str(whole.parent))
    assert hashes == replace(loaded, digests=None).image_hashes()
    assert len(set(hashes)) == MANY
    other = replace(loaded, labels=loaded.labels.flip(0))
    assert content == load_stored(entry).content_hash != other.content_hash
    assert replace(loaded, templates=("a {}.",)).content_hash != content


def test_rows_are_read_by_several_threads_into_the_callers_memory_in_the_callers_order(many, whole, monkeypatch):
    monkeypatch.setenv("AGFT_PREPARED", str(whole.parent))
    images = load_stored(many[0]).images
    rows = np.random.default_rng(0).integers(0, MANY, 2 * MANY)
    found = np.empty((len(rows), 3, 224, 224), np.uint8)
    images.read_into(rows, found)
    assert [tuple(pixel) for pixel in found[:, :, 100, 100]] == [(i % 256, i // 256, 7) for i in rows.tolist()]
    assert torch.equal(images[torch.from_numpy(rows[:40])], torch.from_numpy(found[:40]))


def test_damage_is_named_where_it_is_met(many, whole, tmp_path, monkeypatch):
    entry, _ = many
    folder = copied(whole, tmp_path)
    monkeypatch.setenv("AGFT_PREPARED", str(tmp_path))
    os.truncate(folder / "images-00001.npy", 1000)
    loaded = load_stored(entry)
    loaded.images[torch.tensor([0, 222])]
    with pytest.raises(UserError, match=r"images-00001\.npy: cannot be read .*agft data verify dtd"):
        loaded.images[torch.tensor([111])]
    os.truncate(folder / "images-00000.npy", 150_000)  # it was whole when it was opened
    with pytest.raises(UserError, match=r"images-00000\.npy: it was cut off; see `agft data verify dtd`"):
        loaded.images[torch.tensor([0, 222, 50])]
    (folder / "labels.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=r"labels\.npy: not the SHA-256 of its manifest; see `agft data verify dtd`"):
        load_stored(entry)


def test_small_sets_are_decoded_from_their_own_files_and_large_ones_ask_to_be_prepared(tmp_path, monkeypatch):
    for name in ("cifar10", "eurosat"):
        MINIATURES[name][0](tmp_path)
    rows = {name: row(name, *MINIATURES[name][1:]) for name in ("cifar10", "eurosat")}
    monkeypatch.setattr(data, "DATASETS", datasets_with(rows))
    monkeypatch.setattr(data, "_LOADED", {})
    monkeypatch.setenv("AGFT_DATA", str(tmp_path))
    monkeypatch.delenv("AGFT_PREPARED", raising=False)
    small = load_dataset("cifar10", "data.dev.0")
    assert small.images.shape == (5, 3, 32, 32)
    assert small.labels.tolist() == [2, 0, 1, 1, 0]
    assert load_dataset("cifar10") is small
    assert load_dataset("eurosat").images.shape == (20, 3, 224, 224)  # 20 images are few, whatever their name
    everything = {"data.train": "imagenet-train", "data.dev.0": "tiny-shapes", "data.dev.1": "eurosat"}
    assert not_ready(everything) == [
        f"data.train: 'imagenet-train' is not prepared (looked in {tmp_path}/prepared); "
        "run: agft data prepare imagenet-train"
    ]
    monkeypatch.setattr(data, "DATASETS", datasets_with({"eurosat": replace(rows["eurosat"], num_images=27_000)}))
    monkeypatch.setattr(data, "_LOADED", {})
    with pytest.raises(
        NotPrepared, match=r"^data\.dev\.1: 'eurosat' is not prepared .*run: agft data prepare eurosat$"
    ):
        load_dataset("eurosat", "data.dev.1")


def test_decoded_and_prepared_sets_have_the_same_pixels_and_image_hashes(tmp_path, monkeypatch):
    MINIATURES["stl10"][0](tmp_path)
    entry = row("stl10", *MINIATURES["stl10"][1:])
    monkeypatch.setenv("AGFT_DATA", str(tmp_path))
    raw = load_stored(entry)
    prepare(entry, tmp_path, tmp_path / "prepared")
    ready = load_stored(entry)
    assert ready.digests is not None
    assert torch.equal(ready.images[:], raw.images[:])
    assert ready.image_hashes() == raw.image_hashes()
    assert ready.content_hash == raw.content_hash
    assert torch.equal(ready.labels, raw.labels)
    assert ready.classes == raw.classes


class Elsewhere:
    """A place that is fetched from; remembers what was asked for."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.asked: list[str] = []

    def __call__(self, address: str, path: Path, sha256: str | None) -> bool:
        source = self.place / address.removeprefix("far://sets/")
        self.asked.append(source.name)
        if not source.is_file():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())
        return True


@pytest.fixture
def elsewhere(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Elsewhere:
    place = Elsewhere(whole.parent)
    monkeypatch.setitem(FETCHERS, "far", place)
    monkeypatch.setenv("AGFT_PREPARED", "far://sets")
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path))
    monkeypatch.setenv("AGFT_DATA", str(tmp_path / "none"))
    return place


def test_a_remote_set_is_fetched_file_by_file_at_first_use_and_kept(many, elsewhere):
    entry, asked = many[0], elsewhere.asked
    loaded = load_stored(entry)
    assert asked == [MANIFEST, "labels.npy", "digests.npy"]
    loaded.images[torch.tensor([200, 250, 201])]
    assert sorted(asked[3:]) == ["images-00001.npy", "images-00002.npy"], "side by side, in any order"
    again = load_stored(entry)
    assert torch.equal(again.images[torch.tensor([200])], loaded.images[torch.tensor([200])])
    assert asked[5:] == [MANIFEST]
    copy = pickle.loads(pickle.dumps(loaded.images))  # noqa: S301, our own
    assert torch.equal(copy[torch.tensor([5])], loaded.images[torch.tensor([5])])


def test_a_place_that_nothing_reads_and_a_set_that_is_not_there_are_named(many, elsewhere, monkeypatch):
    with pytest.raises(
        NotPrepared, match=r"'food101' is not prepared \(looked in far://sets\); run: agft data prepare f"
    ):
        load_stored(row("food101", 3, 2))
    monkeypatch.setenv("AGFT_PREPARED", "near://sets")
    with pytest.raises(UserError, match="AGFT_PREPARED: near://sets/dtd: nothing here can read such an address"):
        load_stored(many[0])


def test_a_small_set_that_is_not_elsewhere_is_decoded_from_its_own_files(elsewhere, tmp_path, monkeypatch):
    entry = made("stl10", tmp_path)
    monkeypatch.setenv("AGFT_DATA", str(tmp_path))
    assert load_stored(entry).images.shape == (4, 3, 96, 96)


DAMAGED = {
    "a changed byte": lambda file: file.write_bytes(file.read_bytes()[:-1] + b"x"),
    "a short file": lambda file: os.truncate(file, 1000),
    "no file": lambda file: file.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGED)
@pytest.mark.parametrize("file", ["images-00001.npy", "labels.npy"])
def test_a_kept_file_that_is_damaged_is_fetched_again(file, damage, many, elsewhere, tmp_path):
    entry = many[0]
    before = load_stored(entry).images[torch.tensor([200])]
    (folder,) = (tmp_path / "datasets").glob("dtd-*")
    DAMAGED[damage](folder / file)
    (folder / f".{file}.abcd").mkdir()  # what a killed download leaves
    (folder / f".{file}.abcd/part").write_bytes(b"half")
    elsewhere.asked.clear()
    again = load_stored(entry)
    assert torch.equal(again.images[torch.tensor([200])], before)
    assert elsewhere.asked == [MANIFEST, file]
    assert not (folder / f".{file}.abcd").exists()


def test_a_kept_file_is_read_once_to_check_it_and_again_when_it_was_touched(many, elsewhere, tmp_path, monkeypatch):
    read: list[str] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(
        "hashlib.file_digest", lambda file, kind: read.append(Path(file.name).name) or digest(file, kind)
    )
    entry, (row_,) = many[0], torch.tensor([[200]])
    load_stored(entry).images[row_]
    assert read == [], "the fetcher has checked it"
    load_stored(entry).images[row_]
    assert read == []
    (folder,) = (tmp_path / "datasets").glob("dtd-*")
    os.utime(folder / "images-00001.npy")
    for _ in range(2):
        load_stored(entry).images[row_]
    assert read == ["images-00001.npy"]
    assert elsewhere.asked.count("images-00001.npy") == 1


def test_another_set_at_the_same_place_is_another_one_here(many, elsewhere, whole, tmp_path):
    first = load_stored(many[0])
    elsewhere.place = copied(whole, tmp_path / "changed").parent
    manifest = elsewhere.place / "dtd" / MANIFEST
    manifest.write_text(manifest.read_text().replace("banded", "striped"))
    assert load_stored(many[0]).classes == ("striped", "woven")
    assert first.classes == ("banded", "woven")
    assert len(list((tmp_path / "datasets").glob("dtd-*"))) == 2


def test_of_several_at_once_one_fetches_a_file_and_the_others_wait(many, elsewhere, monkeypatch):
    """Threads here; the lock is one between processes as well."""
    together = threading.Barrier(3)

    def slowly(address: str, path: Path, sha256: str | None) -> bool:
        time.sleep(0.2)
        return elsewhere(address, path, sha256)

    monkeypatch.setitem(FETCHERS, "far", slowly)
    entry, first = many[0], load_stored(many[0]).images[torch.tensor([5])]

    def load(_: int) -> torch.Tensor:
        images = load_stored(entry).images
        together.wait()
        return images[torch.tensor([5, 299])]

    elsewhere.asked.clear()
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(load, range(3)))
    assert all(torch.equal(each[:1], first) for each in found)
    assert [file for file in elsewhere.asked if file != MANIFEST] == ["images-00002.npy"]
