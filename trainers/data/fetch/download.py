"""Get a dataset's own files: one process downloads and unpacks them, or a person is told what to do."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from trainers.data.base import Archive, DatasetEntry
from trainers.data.fetch.unpack import unpack
from trainers.data.fetch.web import Unreachable, bring
from trainers.errors import UserError
from trainers.files import locked

IMAGENET_ARCHIVES = {
    "imagenet": ("val", "ILSVRC2012_img_val.tar"),
    "imagenet-train": ("train", "ILSVRC2012_img_train.tar"),
}
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"  # says which validation image shows what

Say = Callable[[str], None]


def can_download(entry: DatasetEntry, root: Path) -> bool:
    """Whether `download` needs nobody: the files are free, or somebody has put ImageNet's archives there."""
    assert entry.files is not None
    return bool(entry.files.archives) or not _lacking(entry, root)


def _lacking(entry: DatasetEntry, root: Path) -> list[Path]:
    """The archives of ImageNet that are not there (of another set that a person must get: its marker)."""
    assert entry.files is not None
    if entry.name not in IMAGENET_ARCHIVES:
        return [root / entry.files.marker]
    return [
        path for file in (IMAGENET_ARCHIVES[entry.name][1], DEVKIT) if not (path := root / "imagenet" / file).is_file()
    ]


def how_to_get(entry: DatasetEntry, root: Path) -> str:
    """What to do to have a dataset's files, line by line."""
    assert entry.files is not None
    if entry.files.archives:
        return f"  agft data prepare {entry.name} --download"
    return "\n".join(f"  {line.format(root=root)}" for line in entry.files.by_hand)


def download(entry: DatasetEntry, root: Path, *, say: Say) -> None:
    """Download and unpack the files, if they are not there; one process at a time does it, others wait.

    Goes on where an earlier, killed call stopped: with an archive's next byte, or with unpacking. Nothing is where the
    dataset belongs before all of it is. An archive that somebody else put into `root` is taken instead, and left there.
    Raises `UserError`, and OSError for a full disk or a network that is not there.
    """
    assert entry.files is not None
    marker = root / entry.files.marker
    if marker.exists():
        return
    top = entry.files.marker.partition("/")[0]  # one for several datasets, if they come in one archive
    with locked(
        root / f".{top}.download.lock", waiting=lambda: say(f"another process gets {entry.name}; waiting for it")
    ):
        if marker.exists():
            return
        if entry.files.archives:
            _get(entry.name, entry.files.archives, root, entry.files.marker, say)
        elif lacking := _lacking(entry, root):
            raise UserError(f"{entry.name}: {lacking[0]}: not there. To get it:\n{how_to_get(entry, root)}")
        else:
            _unpack_imagenet(entry.name, root, say)


def _get(name: str, archives: Sequence[Archive], root: Path, marker: str, say: Say) -> None:
    """Through `root`/.TOP.download: archives beside a folder `unpacked`, whose TOP is moved to `root` at the end."""
    top = marker.partition("/")[0]
    if (root / top).exists() and any((root / top).iterdir()):
        raise UserError(f"{root / top}: there, but without {marker}: an unfinished unpacking? Remove it, and the same "
                        "command gets it again")  # fmt: skip
    staging = root / f".{top}.download"
    unpacked = staging / "unpacked"
    shutil.rmtree(unpacked, ignore_errors=True)
    found = [_archive(name, each, root, staging, say) for each in archives]
    for archive, path in zip(archives, found, strict=True):
        say(f"{name}: unpacking {path} ...")
        if archive.inner:
            unpack(path, unpacked / ".outer")
            unpack(unpacked / ".outer" / archive.inner, unpacked / archive.into)
        else:
            unpack(path, unpacked / archive.into)
    if not (unpacked / marker).exists():
        raise UserError(f"{found[0]}: no {marker} came out of it; is it another version of the dataset?")
    (unpacked / top).rename(root / top)
    shutil.rmtree(staging)


def _archive(name: str, archive: Archive, root: Path, staging: Path, say: Say) -> Path:
    """The archive, its checksum compared."""
    path = root / archive.file
    if not path.is_file():
        path = staging / archive.file
        if not path.is_file():
            say(f"{name}: downloading {archive.url} ...")
            try:
                bring(archive.url, path, say=say)
            except Unreachable as error:
                raise Unreachable(f"{name}: cannot get {error}. By other means: put {archive.file} into {root}, then "
                                  "run the same command") from error  # fmt: skip
    kind, _, expected = archive.digest.partition(":")
    if expected:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.new(kind, usedforsecurity=False)).hexdigest()
        if digest != expected:
            if path.parent == staging:
                path.unlink()  # so that the next call gets it again
            raise UserError(f"{name}: {path}: its {kind.upper()} is {digest}, not {expected}: damaged on the way, or "
                            f"another version; get it again from {archive.url}")  # fmt: skip
    return path


def _unpack_imagenet(name: str, root: Path, say: Say) -> None:
    """The archives that somebody who is registered has put there, by torchvision, which compares their MD5s."""
    from torchvision import datasets

    split, archive = IMAGENET_ARCHIVES[name]
    base = root / "imagenet"
    say(f"{name}: unpacking {base / archive}; this takes a while ...")
    staging = base / f".{split}.unpacking"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for file in (archive, DEVKIT):
        (staging / file).symlink_to(Path("..") / file)
    try:
        datasets.ImageNet(str(staging), split)
    except RuntimeError as error:  # torchvision's, for an MD5 that differs
        raise UserError(f"{name}: {base}: {archive} or {DEVKIT} is damaged: torchvision expects another MD5. "
                        "Get it again") from error  # fmt: skip
    (staging / split).rename(base / split)
    shutil.rmtree(staging)
