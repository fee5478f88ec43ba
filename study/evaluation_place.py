"""Where an evaluation's files are: a folder, or a prefix in S3. Whatever is written is there whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from infra import storage
from infra.errors import ChecksumMismatch
from study.errors import StudyFailed
from trainers.disk import write_whole

__all__ = ["Folder", "Place", "Prefix", "place_at"]

S3 = "s3://"


class Place(Protocol):
    """Files by name (`units/tiny-letters/pgd-20/0000.safetensors`)."""

    def read(self, name: str) -> bytes | None:
        """A file's bytes, None if there is none; `ValueError` if they are not those that were written."""

    def write(self, name: str, data: bytes) -> None:
        """The file with these bytes, in place of any other."""

    def at(self, name: str) -> str:
        """What to tell people."""


class Folder:
    """On a disk."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self, name: str) -> bytes | None:
        try:
            return (self.path / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ValueError(f"{self.at(name)}: cannot be read: {error.strerror or error}") from error

    def write(self, name: str, data: bytes) -> None:
        path = self.path / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, data)
        except OSError as error:
            raise StudyFailed(f"{path}: cannot be written: {error.strerror or error}; what is finished is kept, the "
                              "same command goes on") from error  # fmt: skip

    def at(self, name: str = "") -> str:
        return str(self.path / name)


class Prefix:
    """In S3, below an address without a closing slash."""

    def __init__(self, uri: str) -> None:
        self.uri = uri

    def read(self, name: str) -> bytes | None:
        try:
            found = storage.get_bytes(self.at(name))
        except ChecksumMismatch as error:
            raise ValueError(str(error)) from error
        return None if found is None else found[0]

    def write(self, name: str, data: bytes) -> None:
        storage.put_bytes(self.at(name), data)

    def at(self, name: str = "") -> str:
        return f"{self.uri}/{name}" if name else self.uri


def place_at(out: str, name: str) -> Folder | Prefix:
    """The place called `name` below `out`, a folder or an s3:// address."""
    if out.startswith(S3):
        return Prefix(f"{out.rstrip('/')}/{name}")
    return Folder(Path(out).expanduser().absolute() / name)
