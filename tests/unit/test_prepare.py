"""Preparing a dataset: what is written, what is refused, what a kill, a second process and a full disk leave."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.miniatures import MINIATURES, row
from trainers import data
from trainers.data import DatasetEntry, load_dataset, not_ready
from trainers.data.decode import decode
from trainers.data.prepare import Progress, prepare
from trainers.data.shards import MANIFEST, faults, read_manifest, shard_size
from trainers.data.stored import FETCHERS, load_stored, read_raw
from trainers.errors import NotPrepared, UserError

ROOT = Path(__file__).parents[2]
MANY = 300  # three parts of 224 x 224 pixels, and more than one process bothers with


def textures(root: Path, number: int) -> DatasetEntry:
    """A DTD of so many images, 120 x 90, every one its own colour."""
    base = root / "dtd/dtd"
    (base / "labels").mkdir(parents=True)
    names = [f"{'banded' if i % 3 else 'woven'}/{i:04d}.png" for i in range(number)]
    for i, name in enumerate(names):
        file = base / "images" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (120, 90), (i % 256, i // 256, 7)).save(file)
    (base / "labels/test1.txt").write_text("\n".join(names))
    return row("dtd", number, 2)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[DatasetEntry, Path]:
    root = tmp_path_factory.mktemp("many")
    return textures(root, MANY), root


@pytest.fixture(scope="module")
def whole(many: tuple[DatasetEntry, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The set of `many`, prepared in one process without a disturbance."""
    entry, root = many
    place = tmp_path_factory.mktemp("whole")
    prepare(entry, root, place, workers=1)
    return place / "dtd"


def contents(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


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


def test_several_processes_write_the_same_bytes(many, whole, tmp_path):
    entry, root = many
    said: list[str] = []
    prepare(entry, root, tmp_path, workers=2, say=said.append)
    assert contents(tmp_path / "dtd") == contents(whole)
    assert said[-1].startswith("dtd: prepared 300 images of 2 classes in")
    prepare(entry, root, tmp_path, workers=2, say=said.append)
    assert said[-1].startswith("dtd: prepared already")


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


START = """
import sys
from pathlib import Path
from tests.miniatures import row
from trainers.data.prepare import prepare
root, place, number, workers = sys.argv[1:]
prepare(row("dtd", int(number), 2), Path(root), Path(place), workers=int(workers), say=lambda t: print(t, flush=True))
"""


def start(root: Path, place: Path, number: int = MANY, workers: int = 1) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", START, str(root), str(place), str(number), str(workers)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("workers", [1, 2])
def test_after_a_kill_the_same_command_goes_on_and_no_image_is_lost_or_doubled(workers, many, whole, tmp_path):
    entry, root = many
    process = start(root, tmp_path, workers=workers)
    wait_for(tmp_path / "dtd/images-00000.json", process)
    process.kill()
    process.wait()
    folder = tmp_path / "dtd"
    assert not (folder / MANIFEST).exists()
    kept = (folder / "images-00000.npy").stat().st_mtime_ns
    (folder / "images-00001.npy").write_bytes(b"half")  # as a machine might leave it that lost its power
    (folder / "images-00002.npy.abcd.tmp").write_bytes(b"half")
    said: list[str] = []
    prepare(entry, root, tmp_path, workers=1, say=said.append)
    assert "images were ready from an earlier run" in said[-2]
    assert contents(folder) == contents(whole)
    assert (folder / "images-00000.npy").stat().st_mtime_ns == kept


INTERRUPTED = """
import sys
import study.data
from tests.miniatures import row
from study.cli import main
study.data.DATASETS = {"dtd": row("dtd", int(sys.argv[1]), 2)}
main(["data", "prepare", "dtd", "--workers", "2"])
"""


def test_ctrl_c_ends_it_with_one_line_and_the_command_goes_on(many, whole, tmp_path):
    _, root = many
    command = [sys.executable, "-c", INTERRUPTED, str(MANY)]
    environment = {**os.environ, "AGFT_DATA": str(root), "AGFT_PREPARED": str(tmp_path)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    wait_for(tmp_path / "dtd", process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the parent and to its workers
    _, error = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "failed: dtd: interrupted; what is finished is kept, the same command goes on" in error
    assert "Traceback" not in error
    assert not list((tmp_path / "dtd").glob("*.tmp"))
    assert subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0
    assert contents(tmp_path / "dtd") == contents(whole)


def test_a_killed_parents_workers_end_with_it(many, tmp_path):
    _, root = many
    process = start(root, tmp_path, workers=2)
    wait_for(tmp_path / "dtd", process)
    deadline = time.monotonic() + 60
    while len(members := group(process.pid)) < 3 and not (tmp_path / "dtd" / MANIFEST).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert len(members) >= 2
    while group(process.pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def group(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(folder.name))
    return found


def test_what_changed_between_two_runs_is_not_mixed(many, whole, tmp_path):
    entry, root = many
    folder = tmp_path / "dtd"
    prepare(entry, root, tmp_path, workers=1)
    manifest = read_manifest(folder / MANIFEST)
    assert manifest is not None
    note = {"plan": "of other files", "sha256": manifest.shards[0].sha256, "digests": "00" * 32 * 111}
    (folder / MANIFEST).unlink()
    (folder / "images-00000.json").write_text(json.dumps(note))
    said: list[str] = []
    prepare(entry, root, tmp_path, workers=1, say=said.append)
    assert not any("earlier run" in line for line in said)
    assert contents(folder) == contents(whole)


def test_of_two_processes_one_works_and_the_other_finds_it_done(many, whole, tmp_path):
    _, root = many
    first = start(root, tmp_path)
    wait_for(tmp_path / "dtd", first)
    second = start(root, tmp_path)
    outputs = [process.communicate(timeout=120)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0]
    assert "prepared 300 images" in outputs[0]
    assert "another process prepares dtd; waiting for it" in outputs[1]
    assert "prepared already" in outputs[1]
    assert contents(tmp_path / "dtd") == contents(whole)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to let a file of this process grow beyond `size`, as a full disk or a quota does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_an_error_that_leaves_nothing_half_and_the_next_run_goes_on(many, whole, tmp_path):
    entry, root = many
    with largest_file(15 << 20), pytest.raises(OSError, match="large"):  # the first two parts need 16 MiB, the last 11
        prepare(entry, root, tmp_path, workers=1)
    assert [file.name for file in (tmp_path / "dtd").iterdir()] == []
    prepare(entry, root, tmp_path, workers=1)
    assert contents(tmp_path / "dtd") == contents(whole)


def test_a_corrupt_image_is_named_and_nothing_is_taken_for_complete(tmp_path):
    entry = textures(tmp_path, 4)
    broken = tmp_path / "dtd/dtd/images/banded/0002.png"
    good = broken.read_bytes()
    for content, reason in ((good[:70], "truncated"), (b"no picture", "cannot identify image file"), (b"", "cannot")):
        broken.write_bytes(content)
        with pytest.raises(UserError, match=rf"0002\.png: not a readable image \(.*{reason}"):
            prepare(entry, tmp_path, tmp_path / "out", workers=1)
        assert list((tmp_path / "out/dtd").iterdir()) == []
    broken.write_bytes(good)
    prepare(entry, tmp_path, tmp_path / "out", workers=1)


def test_a_corrupt_image_stops_all_processes(many, tmp_path):
    entry = textures(tmp_path, MANY)
    (tmp_path / "dtd/dtd/images/banded/0200.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match=r"0200\.png: not a readable image"):
        prepare(entry, tmp_path, tmp_path / "out", workers=2)
    assert not (tmp_path / "out/dtd" / MANIFEST).exists()


def test_missing_images_are_counted_and_the_first_is_named(tmp_path):
    entry = textures(tmp_path, 5)
    for number in (2, 4):
        (tmp_path / f"dtd/dtd/images/banded/{number:04d}.png").unlink()
    with pytest.raises(UserError, match=r"^dtd: .*banded/0002\.png: no such file; 2 of 5 images are missing"):
        prepare(entry, tmp_path, tmp_path / "out")
    assert not (tmp_path / "out/dtd").exists()


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
    folder = tmp_path / "dtd"
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
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


def test_damage_is_named_where_it_is_met(many, whole, tmp_path, monkeypatch):
    entry, _ = many
    folder = tmp_path / "dtd"
    folder.mkdir()
    for file in whole.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("AGFT_PREPARED", str(tmp_path))
    os.truncate(folder / "images-00001.npy", 1000)
    loaded = load_stored(entry)
    loaded.images[torch.tensor([0, 222])]
    with pytest.raises(UserError, match=r"images-00001\.npy: cannot be read .*agft data verify dtd"):
        loaded.images[torch.tensor([111])]
    (folder / "labels.npy").write_bytes(b"x")
    with pytest.raises(UserError, match=r"labels\.npy: not the SHA-256 of its manifest; see `agft data verify dtd`"):
        load_stored(entry)


def test_small_sets_are_decoded_from_their_own_files_and_large_ones_ask_to_be_prepared(tmp_path, monkeypatch):
    for name in ("cifar10", "eurosat"):
        MINIATURES[name][0](tmp_path)
    rows = {name: row(name, *MINIATURES[name][1:]) for name in ("cifar10", "eurosat")}
    monkeypatch.setattr(data, "DATASETS", {**data.DATASETS, **rows})
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
    monkeypatch.setattr(data, "DATASETS", {**data.DATASETS, "eurosat": replace(rows["eurosat"], num_images=27_000)})
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
    assert torch.equal(ready.labels, raw.labels)
    assert ready.classes == raw.classes


def test_a_remote_set_is_fetched_file_by_file_at_first_use_and_kept(many, whole, tmp_path, monkeypatch):
    entry, _ = many
    asked: list[str] = []

    def fetch(address: str, path: Path, sha256: str | None) -> bool:
        source = whole.parent / address.removeprefix("far://sets/")
        asked.append(source.name)
        if not source.is_file():
            return False
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source.read_bytes())
        assert sha256 in (None, hashlib.sha256(source.read_bytes()).hexdigest())
        return True

    monkeypatch.setenv("AGFT_PREPARED", "far://sets")
    monkeypatch.setenv("AGFT_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="AGFT_PREPARED=far://sets: nothing here can read such an address"):
        load_stored(entry)
    monkeypatch.setitem(FETCHERS, "far", fetch)
    loaded = load_stored(entry)
    assert asked == [MANIFEST, "labels.npy", "digests.npy"]
    loaded.images[torch.tensor([200, 250, 201])]
    assert asked[3:] == ["images-00001.npy", "images-00002.npy"]
    again = load_stored(entry)
    assert torch.equal(again.images[torch.tensor([200])], loaded.images[torch.tensor([200])])
    assert asked[5:] == [MANIFEST]
    with pytest.raises(NotPrepared, match="'food101' is not prepared: nothing at far://sets/food101"):
        load_stored(row("food101", 3, 2))


@pytest.mark.parametrize(
    ("images", "size", "each"), [(1_281_167, 224, 7133), (50_000, 224, 1562), (1_880, 224, 111), (10_000, 32, 5461)]
)
def test_a_set_has_about_32_files_of_16_mib_to_1_gib(images, size, each):
    assert shard_size(images, 3 * size**2) == each
    assert images / each <= 180


def test_progress_says_how_fast_and_how_long_without_counting_what_was_ready(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    said: list[str] = []
    progress = Progress("dtd", 1000, said.append)
    for seconds, done in ((3, 250), (6, 500), (8, 600), (12, 800)):
        now[0] = 100 + seconds
        progress(done, 200)
    assert said == [
        "dtd: 500 of 1,000 images, 50 a second, about 10 s left",
        "dtd: 800 of 1,000 images, 50 a second, about 4 s left",
    ]
