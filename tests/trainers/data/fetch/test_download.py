"""Getting a dataset's files: downloaded and unpacked by one process, or put there by somebody."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import io
import re
import tarfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torchvision
from scipy.io import savemat

from tests.support.miniatures import WNIDS, made
from tests.support.services.webserver import Server, serving
from trainers.data import DatasetEntry
from trainers.data.fetch.download import can_download, download
from trainers.data.fetch.unpack import unpack
from trainers.data.fetch.web import Unreachable
from trainers.data.stored import read_raw
from trainers.data.table import FILE_DATASETS
from trainers.errors import UserError

ARCHIVES = {name: entry.files.archives for name, entry in FILE_DATASETS.items() if entry.files and entry.files.archives}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr("trainers.data.fetch.web.PAUSE_SECONDS", 0.001)
    with serving() as running:
        yield running


def tarred(folder: Path, names: list[str], mode: str) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=mode) as archive:
        for name in names:
            archive.add(folder / name, name)
    return content.getvalue()


def zipped(folder: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))
    return content.getvalue()


MEMBERS = {"102flowers.tgz": ["jpg"], "images.tar.gz": ["images"], "annotations.tar.gz": ["annotations"]}


def packed(file: str, folder: Path, tmp: Path) -> bytes:
    """The archive as its authors have it, with what a miniature has in `folder`."""
    if file == "caltech-101.zip":
        inner = tmp / "zip/caltech-101/101_ObjectCategories.tar.gz"
        inner.parent.mkdir(parents=True)
        inner.write_bytes(tarred(folder, ["101_ObjectCategories"], "w:gz"))
        (tmp / "zip/__MACOSX").mkdir()
        return zipped(tmp / "zip")
    if file.endswith(".zip"):
        return zipped(folder)
    if file.endswith((".tar", ".tar.gz", ".tgz")):
        return tarred(folder, MEMBERS.get(file, [each.name for each in folder.iterdir()]),
                      "w" if file.endswith(".tar") else "w:gz")  # fmt: skip
    plain = (folder / file.removesuffix(".gz")).read_bytes()
    return gzip.compress(plain) if file.endswith(".gz") else plain


def offered(name: str, server: Server, tmp: Path) -> DatasetEntry:
    """The row of a miniature whose archives the server has."""
    entry = made(name, tmp / "original")
    assert entry.files is not None
    archives = []
    for archive in entry.files.archives:
        content = server.files[archive.file] = packed(archive.file, tmp / "original" / archive.into, tmp)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        archives.append(replace(archive, url=f"{server.url}/some/where/{archive.file}", digest=digest))
    return replace(entry, files=replace(entry.files, archives=tuple(archives)))


def listing(root: Path) -> set[str]:
    return {each.name for each in root.iterdir() if not each.name.endswith(".lock")}


@pytest.mark.parametrize("name", ARCHIVES)
def test_what_is_downloaded_and_unpacked_is_what_is_read(name, server, tmp_path):
    entry = offered(name, server, tmp_path)
    download(entry, tmp_path / "new", say=lambda _: None)
    found, original = read_raw(entry, tmp_path / "new"), read_raw(entry, tmp_path / "original")
    assert list(found.labels) == list(original.labels)
    assert found.classes == original.classes
    if isinstance(found.images, list) and isinstance(original.images, list):
        assert [file.read_bytes() for file in found.images] == [file.read_bytes() for file in original.images]
    assert entry.files is not None
    assert listing(tmp_path / "new") == {entry.files.marker.partition("/")[0]}, "no archive is left"
    asked = len(server.asked)
    download(entry, tmp_path / "new", say=lambda _: None)
    assert len(server.asked) == asked, "what is there is left alone"


OURS = {"tiny-imagenet", "tiny-imagenet-train", "imagenet-r", "imagenet-sketch", "imagenet-a", "imagenet-v2", "pcam"}


@pytest.mark.parametrize("name", sorted(ARCHIVES.keys() - OURS))
def test_addresses_and_md5s_are_torchvisions(name):
    theirs = "".join(
        inspect.getsource(getattr(torchvision.datasets, module))
        for module in ("caltech", "cifar", "dtd", "eurosat", "fgvc_aircraft", "flowers102", "food101",
                       "oxford_iiit_pet", "stl10", "sun397", "country211")
    )  # fmt: skip
    for archive in ARCHIVES[name]:
        assert archive.url in theirs or archive.url.rsplit("/", 1)[0] + "/" in theirs
        assert archive.file in theirs
        if name != "fgvc-aircraft":  # which torchvision does not check
            assert archive.digest.removeprefix("md5:") in theirs


def test_every_checksum_is_one():
    for archive in (each for archives in ARCHIVES.values() for each in archives):
        assert re.fullmatch(r"md5:[0-9a-f]{32}|sha256:[0-9a-f]{64}|", archive.digest)
        assert bool(archive.digest) == (
            archive.file not in ("ImageNet-Sketch.zip", "imagenetv2-matched-frequency.tar.gz")
        )


def test_without_a_network_one_line_says_what_to_do(server, tmp_path):
    entry = offered("food101", server, tmp_path)
    server.shutdown()
    server.server_close()
    with pytest.raises(Unreachable) as caught:
        download(entry, tmp_path / "new", say=lambda _: None)
    assert str(caught.value) == (
        f"food101: cannot get {server.url}/some/where/food-101.tar.gz: [Errno 111] Connection refused. "
        f"By other means: put food-101.tar.gz into {tmp_path}/new, then run the same command"
    )
    (tmp_path / "new/food-101.tar.gz").write_bytes(server.files["food-101.tar.gz"])
    download(entry, tmp_path / "new", say=lambda _: None)
    assert listing(tmp_path / "new") == {"food-101", "food-101.tar.gz"}, "what somebody put there stays"
    read_raw(entry, tmp_path / "new")


def test_a_file_with_another_checksum_is_not_unpacked_and_got_again(server, tmp_path):
    entry = offered("dtd", server, tmp_path)
    good = server.files["dtd-r1.0.1.tar.gz"]
    server.files["dtd-r1.0.1.tar.gz"] = good[:-1] + b"x"
    with pytest.raises(UserError, match=r"dtd-r1\.0\.1\.tar\.gz: its SHA256 is \w+, not \w+: damaged on the way"):
        download(entry, tmp_path / "new", say=lambda _: None)
    assert not (tmp_path / "new/dtd").exists()
    server.files["dtd-r1.0.1.tar.gz"] = good
    download(entry, tmp_path / "new", say=lambda _: None)
    read_raw(entry, tmp_path / "new")


def test_an_unpacking_that_was_killed_is_done_again_and_never_taken_for_the_dataset(server, tmp_path):
    entry = offered("dtd", server, tmp_path)
    half = tmp_path / "new/.dtd.download/unpacked/dtd/dtd/images/banded"
    half.mkdir(parents=True)
    (half / "half.jpg").write_bytes(b"half")
    download(entry, tmp_path / "new", say=lambda _: None)
    assert not list((tmp_path / "new").rglob("half.jpg"))
    read_raw(entry, tmp_path / "new")


def test_what_is_in_the_way_is_named(server, tmp_path):
    entry = offered("eurosat", server, tmp_path)
    (tmp_path / "new/eurosat").mkdir(parents=True)
    (tmp_path / "new/eurosat/EuroSAT.zip").write_bytes(b"")
    with pytest.raises(UserError, match=r"new/eurosat: there, but without eurosat/2750: an unfinished unpacking\?"):
        download(entry, tmp_path / "new", say=lambda _: None)
    assert server.asked == []


def test_an_archive_of_something_else_is_refused(server, tmp_path):
    entry = offered("eurosat", server, tmp_path)
    assert entry.files is not None
    other = replace(entry, files=replace(entry.files, marker="eurosat/EuroSAT"))
    with pytest.raises(UserError, match=r"EuroSAT\.zip: no eurosat/EuroSAT came out of it"):
        download(other, tmp_path / "new", say=lambda _: None)
    assert not (tmp_path / "new/eurosat").exists()


def test_of_two_one_downloads_and_the_other_waits(server, tmp_path):
    """Also for two datasets in one archive."""
    validation = offered("tiny-imagenet", server, tmp_path)
    train = replace(FILE_DATASETS["tiny-imagenet-train"], num_images=3, num_classes=3)
    assert train.files is not None
    assert validation.files is not None
    entries = [validation, replace(train, files=replace(train.files, archives=validation.files.archives))]
    server.until.clear()
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        if line.startswith("another process gets tiny-imagenet"):
            server.until.set()

    with ThreadPoolExecutor(2) as both:
        for done in [both.submit(download, entry, tmp_path / "new", say=say) for entry in entries]:
            done.result()
    assert [name for name, _ in server.asked] == ["tiny-imagenet-200.zip"]
    assert sum(": downloading " in line for line in said) == 1
    assert any(line.startswith("another process gets tiny-imagenet") for line in said)
    for entry in entries:
        read_raw(entry, tmp_path / "new")


@pytest.mark.parametrize("file", ["x.tar.gz", "x.tgz", "x.tar", "x.zip", "x.h5.gz"])
def test_an_archive_that_is_damaged_is_named(file, tmp_path):
    for content in (b"no archive", gzip.compress(b"x" * 5000)[:-9]):
        (tmp_path / file).write_bytes(content)
        with pytest.raises(UserError, match=rf"/{file}: cannot be unpacked \(.+\); remove it and get it again$"):
            unpack(tmp_path / file, tmp_path / "out")
        (tmp_path / "out/x.h5").unlink(missing_ok=True)


def test_an_archive_writes_nowhere_else(tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        member = tarfile.TarInfo("../outside")
        archive.addfile(member)
    with pytest.raises(UserError, match=r"x\.tar: cannot be unpacked \('../outside' would be extracted to"):
        unpack(tmp_path / "x.tar", tmp_path / "out")
    assert not (tmp_path / "outside").exists()


def imagenet_archives(base: Path) -> None:
    """ILSVRC2012's two archives of the validation set, of three images."""
    base.mkdir(parents=True)
    kit = base / "ILSVRC2012_devkit_t12/data"
    kit.mkdir(parents=True)
    synsets = [(number, wnid, wnid, "", 0) for number, wnid in enumerate(sorted(WNIDS), 1)]
    fields = [(name, object) for name in ("ILSVRC2012_ID", "WNID", "words", "gloss", "num_children")]
    savemat(kit / "meta.mat", {"synsets": np.array([*synsets, (4, "n00001740", "entity", "", 3)], fields)})
    (kit / "ILSVRC2012_validation_ground_truth.txt").write_text("2\n3\n1\n")
    (base / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(tarred(base, ["ILSVRC2012_devkit_t12"], "w:gz"))
    images = base / "images"
    images.mkdir()
    for number in range(1, 4):
        (images / f"ILSVRC2012_val_{number:08d}.JPEG").write_bytes(bytes([number]))
    (base / "ILSVRC2012_img_val.tar").write_bytes(tarred(images, sorted(each.name for each in images.iterdir()), "w"))


def test_imagenets_archives_are_unpacked_where_somebody_put_them(tmp_path, monkeypatch):
    entry, base = FILE_DATASETS["imagenet"], tmp_path / "imagenet"
    assert not can_download(entry, tmp_path)
    with pytest.raises(UserError, match=r"^imagenet: .*/ILSVRC2012_img_val\.tar: not there\. To get it:\n  1\. regist"):
        download(entry, tmp_path, say=lambda _: None)
    imagenet_archives(base)
    assert can_download(entry, tmp_path)
    with pytest.raises(UserError, match="torchvision expects another MD5"):
        download(entry, tmp_path, say=lambda _: None)
    assert not (base / "val").exists()
    monkeypatch.setattr("torchvision.datasets.imagenet.check_integrity", lambda path, md5=None: Path(path).is_file())
    (base / ".val.unpacking").mkdir(exist_ok=True)
    (base / ".val.unpacking/half").write_bytes(b"of a killed process")
    download(entry, tmp_path, say=lambda _: None)
    found = read_raw(replace(entry, num_images=3, num_classes=3), tmp_path)
    assert isinstance(found.images, list)
    assert [file.read_bytes() for file in found.images] == [b"\3", b"\1", b"\2"]
    assert [file.parent.name for file in found.images] == sorted(WNIDS)
    assert not list(base.glob(".val*"))
    assert (base / "ILSVRC2012_img_val.tar").is_file()
