"""Where files are kept, and what makes a written one sure: room taken at once, its bytes and its name on the disk."""

from __future__ import annotations

import errno
import os
import secrets
from pathlib import Path

__all__ = ["TEMPORARY", "cache_folder", "sync_folder", "take_space", "write_whole"]

TEMPORARY = ".tmp"  # what every unfinished file is called at the end


def cache_folder() -> Path:
    """`$AGFT_CACHE`, else `agft-study` in the user's cache folder. What is in it may be deleted at any time."""
    named = os.environ.get("AGFT_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agft-study"


def take_space(file: int, size: int) -> None:
    """Raises OSError where there is too little; some systems cannot tell before they write."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise


def sync_folder(folder: Path) -> None:
    """So that a file that was renamed into it is found after a power cut."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def write_whole(path: Path, content: bytes) -> None:
    """`path` with this content, or as it was: never half."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
