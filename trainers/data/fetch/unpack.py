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


def unpack(archive: Path, folder: Path) -> None:
    """By the name's ending: a tar or zip file's members, a .gz file's content, any other file as it is."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if archive.name.endswith(TAR):
            with tarfile.open(archive) as members:
                members.extractall(folder, filter="data")  # refuses links and paths that lead out of the folder
        elif archive.suffix == ".zip":
            with zipfile.ZipFile(archive) as content:
                content.extractall(folder)
        elif archive.suffix == ".gz":
            with gzip.open(archive) as packed, (folder / archive.stem).open("xb") as file:
                shutil.copyfileobj(packed, file, 1 << 20)
        else:
            shutil.copyfile(archive, folder / archive.name)
    except DAMAGE as error:
        reason = " ".join(str(error).split())  # tarfile's has lines
        raise UserError(f"{archive}: cannot be unpacked ({reason}); remove it and get it again") from error
