"""Where files are kept, and what makes a written one sure: room taken at once, its bytes and its name on the disk."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer


TEMPORARY = ".tmp"  # what every unfinished file is called at the end


def cache_folder() -> Path:
    """`$AGFT_CACHE`, else `agft-study` in the user's cache folder. What is in it may be deleted at any time."""
    named = os.environ.get("AGFT_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "agft-study"


def hash_file(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def write_whole(path: Path, *content: Buffer) -> None:
    """`path` with this content, one part after the other, or as it was: never half."""
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        with temporary.open("xb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


# A lock between processes that need not be waited for, and that shows its owner's number to whoever did not get it.

POLL_SECONDS = 0.1


class FileLock:
    """`flock` on a file: the system releases it when the process dies, however it dies.

    The owner writes a random number into the file, so that the members of a group can tell whether it is one of them
    who holds the lock of a folder that they share, on whatever disk and node that folder is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.token = secrets.randbits(62)
        self._file: int | None = None

    @property
    def held(self) -> bool:
        return self._file is not None

    def acquire(self) -> bool:
        """Try once; False if another process (or another lock of this one) holds it. Raises OSError."""
        assert not self.held, f"{self.path} is held already"
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self.token = secrets.randbits(62)
            os.pwrite(file, self.token.to_bytes(8, "little"), 0)
        except BlockingIOError:
            os.close(file)
            return False
        except BaseException:
            os.close(file)
            raise
        self._file = file
        return True

    def owner(self) -> int:
        """The number that the last owner wrote; -1 if there is none."""
        try:
            content = self.path.read_bytes()
        except OSError:
            return -1
        return int.from_bytes(content, "little") if len(content) == 8 else -1

    def release(self) -> None:
        """Let others have it; nothing happens if it is not held."""
        if self._file is not None:
            file, self._file = self._file, None
            os.close(file)


@contextmanager
def locked(path: Path, *, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Alone with the lock at `path`; `waiting` is called once if another process has it. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    told = False
    while not lock.acquire():
        if not told:
            waiting()
            told = True
        time.sleep(POLL_SECONDS)
    try:
        yield
    finally:
        lock.release()
