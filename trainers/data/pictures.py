"""Which files below a folder are pictures, what is left out and why, and what is no file. Opens nothing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from trainers.errors import UserError

# What Pillow reads without another program, and people have pictures in. Not here: EPS and PS (run a program), PDF,
# PALM (only written), WMF and EMF (Windows alone), MPEG, HDF5, GRIB, BUFR (recognised, not read), and formats of one
# game, device or instrument (BLP, CUR, DCX, FITS, FLI, FTEX, GBR, IM, IPTC, MSP, PCD, PIXAR, XBM, XPM).
FORMATS: dict[str, tuple[str, ...]] = {
    "AVIF": (".avif", ".avifs"),
    "BMP": (".bmp",),
    "DDS": (".dds",),
    "DIB": (".dib",),
    "GIF": (".gif",),
    "ICNS": (".icns",),
    "ICO": (".ico",),
    "JPEG": (".jfif", ".jpe", ".jpeg", ".jpg", ".mpo"),
    "JPEG2000": (".j2c", ".j2k", ".jp2", ".jpc", ".jpf", ".jpx"),
    "PCX": (".pcx",),
    "PNG": (".apng", ".png"),
    "PPM": (".pbm", ".pfm", ".pgm", ".pnm", ".ppm"),
    "PSD": (".psd",),
    "QOI": (".qoi",),
    "SGI": (".bw", ".rgb", ".rgba", ".sgi"),
    "SUN": (".ras",),
    "TGA": (".icb", ".tga", ".vda", ".vst"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
# What operating systems and storage boxes leave in folders; what begins with a full stop is left out as well.
LITTER = frozenset(
    ("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "system volume information", "lost+found",
     "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
)  # fmt: skip
SHOWN = 20  # of many


@dataclass
class Look:
    """What is in a folder of class folders. `labels` index `classes`, the names of the sub-folders in order.

    `left_out`: how many files or folders of a kind are no pictures. `bad`: what is called like a picture and is no
    file, a sentence each. `nested`: classes whose pictures all lie deeper than in the class folder itself.
    """

    classes: list[str]
    files: list[Path] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    bad: list[str] = field(default_factory=list)
    nested: set[str] = field(default_factory=set)

    @property
    def empty(self) -> list[str]:
        """Classes without a picture."""
        counts = Counter(self.labels)
        return [name for label, name in enumerate(self.classes) if not counts[label]]


def look(folder: Path, *, skip: Sequence[str] = ()) -> Look:
    """The pictures directly or deeper in the sub-folders of `folder`, in the order of torchvision's ImageFolder.

    Links are followed, as there; one that leads back to a folder above it is left out. Raises OSError.
    """
    inside = sorted(os.scandir(folder), key=lambda each: each.name)
    found = Look([])
    for each in inside:
        if _is_litter(each.name):
            found.left_out[_kind(each.name)] += 1
        elif not _is(each.is_dir):
            found.left_out["beside the class folders"] += 1
        elif each.name not in skip:
            found.classes.append(each.name)
    for label, name in enumerate(found.classes):
        entries = sorted(_below(folder / name, found), key=lambda each: (os.path.dirname(each.path), each.name))
        files = [Path(each.path) for each in entries if _is_picture(each, found)]
        if files and all(file.parent != folder / name for file in files):
            found.nested.add(name)
        found.files += files
        found.labels += [label] * len(files)
    return found


Identity = tuple[int, int]  # of a folder, however it is called


def _identity(path: str | Path) -> Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _below(folder: Path, found: Look) -> Iterator[os.DirEntry[str]]:
    """All that is no folder."""
    waiting: list[tuple[str, tuple[Identity, ...]]] = [(str(folder), (_identity(folder.parent),))]
    while waiting:
        path, above = waiting.pop()
        this = _identity(path)
        if this in above:
            found.left_out["links that lead back"] += 1
            continue
        with os.scandir(path) as entries:
            for each in entries:
                if _is_litter(each.name):
                    found.left_out[_kind(each.name)] += 1
                elif _is(each.is_dir):
                    waiting.append((each.path, (*above, this)))
                else:
                    yield each


def _is(asked: Callable[[], bool]) -> bool:
    try:
        return asked()
    except OSError:  # a link to itself
        return False


def _is_litter(name: str) -> bool:
    return name.startswith(".") or name.casefold() in LITTER


def _kind(name: str) -> str:
    return "._* of macOS" if name.startswith("._") else name[:40]


def _is_picture(entry: os.DirEntry[str], found: Look) -> bool:
    suffix = os.path.splitext(entry.name)[1].lower()
    if suffix not in SUFFIXES:
        found.left_out[f"*{suffix[:40]}" if suffix else "without a suffix"] += 1
        return False
    if not _is(entry.is_file):
        found.bad.append(f"{entry.path}: {what_it_is(Path(entry.path))}")
        return False
    return True


def what_it_is(path: Path) -> str:
    """Of something that is no file."""
    if path.is_symlink() and not path.exists():
        return f"a link to {os.readlink(path)}, which is not there"
    return "a named pipe, no file" if path.is_fifo() else "a device or socket, no file"


def counted(kinds: Counter[str]) -> str:
    """`3 *.txt, 1 .ipynb_checkpoints`: the commonest first."""
    shown = [f"{number:,} {kind}" for kind, number in sorted(kinds.items(), key=lambda each: (-each[1], each[0]))]
    return ", ".join(shown[:SHOWN]) + (f" and {len(shown) - SHOWN} more kinds" if len(shown) > SHOWN else "")


def listed(problems: Sequence[str], what: str) -> str:
    """One message: the only problem itself, or the first of them a line each below how many there are of `what`."""
    if len(problems) == 1:
        return problems[0]
    more = [f"and {len(problems) - SHOWN:,} more"] if len(problems) > SHOWN else []
    return "\n  ".join([f"{len(problems):,} {what}:", *problems[:SHOWN], *more])


def images_in_folders(folder: Path, *, skip: Sequence[str] = ()) -> tuple[list[str], list[Path], list[int]]:
    """Names of sub-folders, the pictures in them, their labels: `look`, for sets whose folders are known."""
    found = look(folder, skip=skip)
    if found.bad:
        raise UserError(listed(found.bad, "are no files"))
    return found.classes, found.files, found.labels
