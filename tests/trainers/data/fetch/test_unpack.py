"""Archives that are not what a dataset comes in: refused with their limit, before they fill a disk."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from trainers.data.fetch import unpack as unpacking
from trainers.data.fetch.unpack import unpack
from trainers.errors import UserError

Member = tuple[str, bytes, str]


def tar_of(path: Path, kind: bytes, *, link: str = "", name: str = "x", size: int = 0) -> None:
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = kind, link, size
        tar.addfile(entry, io.BytesIO(bytes(size)))


def zip_of(path: Path, *members: tuple[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as content:
        for name, data in members:
            content.writestr(name, data)


def encrypted(path: Path) -> None:
    zip_of(path, ("x.png", b"1"))
    data = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + place] |= 1
    path.write_bytes(data)


MANY = 5 << 20
REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "a tar that grows": ("x.tar.gz", lambda path: tar_of(path, tarfile.REGTYPE, size=MANY), "GB would come out of"),
    "a zip that grows": ("x.zip", lambda path: zip_of(path, ("x", bytes(MANY))), "GB would come out of"),
    "a gz that grows": ("x.gz", lambda path: path.write_bytes(gzip.compress(bytes(MANY))), "GB would come out of"),
    "very many files": ("x.zip", lambda path: zip_of(path, *((str(i), b"") for i in range(60))), "more than 50 files"),
    "a path without end": ("x.tar.gz", lambda path: tar_of(path, tarfile.REGTYPE, name="a/" * 600), "a path of 1,199"),
    "a device": ("x.tar.gz", lambda path: tar_of(path, tarfile.CHRTYPE), "is a special file"),
    "a pipe": ("x.tar.gz", lambda path: tar_of(path, tarfile.FIFOTYPE), "is a special file"),
    "a link out of it": ("x.tar.gz", lambda path: tar_of(path, tarfile.SYMTYPE, link="../../y"), "would link to"),
    "a hard link to a file of the machine": ("x.tar.gz", lambda path: tar_of(path, tarfile.LNKTYPE, link="/etc/passwd"),
                                             "is a link to an absolute path"),
    "an absolute path out of it": ("x.tar.gz", lambda path: tar_of(path, tarfile.REGTYPE, name="../y"), "outside"),
    "an encrypted zip": ("x.zip", encrypted, "is encrypted"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_no_dataset_comes_in_is_refused(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "FREE_BYTES", 1 << 20)
    monkeypatch.setattr(unpacking, "MOST_MEMBERS", 50)
    name, make, rule = REFUSED[kind]
    make(tmp_path / name)
    with pytest.raises(UserError) as caught:
        unpack(tmp_path / name, tmp_path / "out")
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / name}: ")
    assert rule in message
    assert "\n" not in message
    assert sum(file.stat().st_size for file in (tmp_path / "out").rglob("*") if file.is_file()) <= 2 << 20
    assert {each.name for each in tmp_path.iterdir()} == {name, "out"}


def test_links_inside_an_archive_and_a_path_to_the_root_stay_in_the_folder(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for name, link in (("a/x", ""), ("b", "a/x")):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = (tarfile.SYMTYPE, link) if link else (tarfile.REGTYPE, "")
            tar.addfile(entry)
    zip_of(tmp_path / "y.zip", ("/abs/z", b"1"), ("../up/z", b"2"))
    unpack(tmp_path / "x.tar", tmp_path / "out")
    unpack(tmp_path / "y.zip", tmp_path / "out")
    assert (tmp_path / "out/b").resolve() == tmp_path / "out/a/x"
    assert {each.name for each in tmp_path.iterdir()} == {"x.tar", "y.zip", "out"}
    assert (tmp_path / "out/abs/z").read_bytes() == b"1"
