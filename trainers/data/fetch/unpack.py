"""Archives, unpacked into a folder; what is in them can write nowhere else."""

from __future__ import annotations

import gzip
import shutil
import tarfile
import zipfile
import zlib
from pathlib import Path

from trainers.errors import UserError

TAR = (".tar", ".tar.gz", ".tgz")
DAMAGE = (tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, zlib.error, EOFError)
MOST_MEMBERS = 5_000_000  # ImageNet has 1.3 million
LARGEST_RATIO, FREE_BYTES = 100, 1 << 30  # what comes out: 1 GiB, and at most so many times what is there
LONGEST_PATH = 1000
CHUNK_BYTES = 1 << 20


class _Allowance:
    """What may still come out of an archive; a `UserError` for what is more, before it is written."""

    def __init__(self, archive: Path) -> None:
        self.archive, self.members = archive, MOST_MEMBERS
        self.whole = self.bytes = FREE_BYTES + LARGEST_RATIO * archive.stat().st_size

    def take(self, name: str, size: int) -> None:
        self.members -= 1
        self.bytes -= size
        if self.members < 0:
            raise UserError(f"{self.archive}: more than {MOST_MEMBERS:,} files in it; nobody's dataset has so many")
        if self.bytes < 0:
            packed = self.archive.stat().st_size
            raise UserError(f"{self.archive}: more than {self.whole / 1e9:,.1f} GB would come out of "
                            f"{packed / 1e9:,.3f} GB: no dataset is packed so tightly")  # fmt: skip
        if len(name) > LONGEST_PATH:
            raise UserError(f"{self.archive}: {name[:40]}...: a path of {len(name):,} characters; "
                            f"at most {LONGEST_PATH:,}")  # fmt: skip


def unpack(archive: Path, folder: Path) -> None:
    """By the name's ending: a tar or zip file's members, a .gz file's content, any other file as it is.

    Refused: paths and links that lead out of the folder, devices and pipes, and more than `_Allowance` has.
    """
    folder.mkdir(parents=True, exist_ok=True)
    allowance = _Allowance(archive)
    try:
        if archive.name.endswith(TAR):
            with tarfile.open(archive) as members:
                for member in members:
                    allowance.take(member.name, member.size)
                    members.extract(member, folder, filter="data")
        elif archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as content:
                for entry in content.infolist():
                    allowance.take(entry.filename, entry.file_size)
                content.extractall(folder)
        elif archive.suffix == ".gz":
            with gzip.open(archive) as packed, (folder / archive.stem).open("xb") as file:
                while chunk := packed.read(CHUNK_BYTES):
                    allowance.take(archive.stem, len(chunk))
                    file.write(chunk)
        else:
            shutil.copyfile(archive, folder / archive.name)
    except (*DAMAGE, NotImplementedError, RuntimeError) as error:  # zipfile's, of encrypted members and odd methods
        reason = " ".join(str(error).split())  # tarfile's has lines
        raise UserError(f"{archive}: cannot be unpacked ({reason}); remove it and get it again") from error
