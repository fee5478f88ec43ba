"""What a file of weights is, told from its bytes and not from its name; its tensors, read without running anything."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from trainers.errors import UserError
from trainers.model import torchscript

LFS = b"version https://git-lfs.github.com/spec/"
# What a file begins with that is none of weights, and what it is.
OTHERS: tuple[tuple[bytes, str], ...] = (
    (LFS, "a git-lfs pointer instead of the file that it stands for: fetch it with `git lfs pull`"),
    (b"\x1f\x8b", "an archive (gzip): unpack it first"),
    (b"BZh", "an archive (bzip2): unpack it first"),
    (b"\xfd7zXZ", "an archive (xz): unpack it first"),
    (b"7z\xbc\xaf", "an archive (7z): unpack it first"),
    (b"\x28\xb5\x2f\xfd", "an archive (zstd): unpack it first"),
    (b"Rar!", "an archive (rar): unpack it first"),
    (b"%PDF", "a PDF, not tensors"),
    (b"\x93NUMPY", "an array of numpy, not the tensors of a model"),
    (b"\x89HDF", "an HDF5 file, of Keras or TensorFlow: save the tensors with torch first"),
    (b"GGUF", "a GGUF file: save the tensors with torch first"),
    (b"<", "a web page or XML, so the download was refused or had another address: look at it in an editor"),
    (b'{"', "JSON, not tensors: a configuration, or a server's answer"),
)
NO_TEXT = re.compile(rb"[\x00-\x08\x0e-\x1f\x7f]")  # which both formats of weights begin with
BEGINNING = 512  # bytes; a tar archive says so at 257
PACKED_BYTES = 20_000_000
HEADER_BYTES = 100_000_000  # of a safetensors file, at most, as the library has it


class Ignored:
    """Stands in for the numpy scalars in TeCoA's files (their best accuracy); keeps and does nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


HARMLESS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


def what_else(path: Path) -> str:
    """What `path` is if it cannot be a file of weights, or ''. Raises `UserError` where it cannot be read."""
    try:
        if not path.is_file():
            return (
                "a folder, not a file" if path.is_dir() else "not a regular file" if path.exists() else "no such file"
            )
        with path.open("rb") as file:
            beginning = file.read(BEGINNING)
    except (OSError, ValueError) as error:
        return f"cannot be read: {getattr(error, 'strerror', None) or error}"
    if not beginning:
        return "empty: 0 bytes, a download or copy that came to nothing"
    if not beginning.strip(b"\0"):
        return "nothing but zeros at its beginning: a download or copy that came to nothing"
    if beginning[257:262] == b"ustar":
        return "an archive (tar): unpack it first"
    text = None if NO_TEXT.search(beginning) else beginning.removeprefix(b"\xef\xbb\xbf").strip()
    start = beginning if text is None else text
    if found := next((what for mark, what in OTHERS if start.startswith(mark)), ""):
        return found
    if text is None:
        return ""
    line = text.decode(errors="replace").partition("\n")[0][:60]
    return f"text, not tensors; it begins with {line!r}" if line else "empty: nothing but white space"


def is_safetensors(path: Path) -> bool:
    """By its first bytes: the length of a header, and a brace."""
    try:
        with path.open("rb") as file:
            beginning = file.read(9)
    except (OSError, ValueError):
        return False
    return beginning[8:] == b"{" and 2 <= int.from_bytes(beginning[:8], "little") <= HEADER_BYTES


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What is in a safetensors or torch file, on the CPU, mapped into memory where the format allows.

    A file that needs code to be read is refused, and one that is something else is called what it is: `UserError`.
    """
    if what := what_else(path):
        raise UserError(f"{path}: {what}")
    try:
        if is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if zipfile.is_zipfile(path):
            if reason := _no_torch_file(path):
                raise UserError(f"{path}: {reason}")
            if torchscript.is_archive(path):
                return torchscript.read_tensors(path)
        with torch.serialization.safe_globals([(Ignored, name) for name in HARMLESS]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats of old, which are read or refused below
            if path.suffix == ".safetensors":  # torch would take its name at its word
                with path.open("rb") as file:
                    found = torch.load(file, map_location="cpu", weights_only=True)
            else:
                mapped = zipfile.is_zipfile(path)
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except UserError:
        raise
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {_refusal(str(error))}") from None
    except Exception as error:  # on bytes that are no checkpoint, torch raises whatever it stumbles over
        raise UserError(f"{path}: {_unreadable(_first_line(error))}") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: holds a {type(found).__name__}, not a dictionary of tensors")
    return dict(found)


def _no_torch_file(path: Path) -> str:
    """Why a zip archive is none that torch writes, or ''. torch packs a program's text alone: more may be a bomb."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    if sum(entry.file_size for entry in entries if entry.compress_type != zipfile.ZIP_STORED) > PACKED_BYTES:
        return "a zip archive of packed files, which torch does not write: unpack it first"
    if not any(entry.filename.endswith("/data.pkl") for entry in entries):
        return "a zip archive without a `data.pkl`, so not of torch: unpack it first"
    return ""


def _unreadable(reason: str) -> str:
    return f"not a readable checkpoint, perhaps truncated ({reason})"


def _refusal(text: str) -> str:
    """One line instead of torch's advice to load the file anyway."""
    for mark in ("GLOBAL ", "Trying to call reduce for unrecognized function ", "but got "):
        if mark in text:
            name = text.split(mark, 1)[1].split(" ")[0].strip("`'\".")
            return f"refused: reading it would run code ({name}); only tensors and plain values are read"
    reason = text.partition("WeightsUnpickler error:")[2].strip() or text
    return _unreadable(reason.splitlines()[0][:120] if reason else "no reason given")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160] or type(error).__name__
