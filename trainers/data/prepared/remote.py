"""Prepared sets in S3: each file is fetched at its first use, once for all processes of a node, and checked.

<cache>/datasets/<set>-<16 digits of the manifest's SHA-256>/FILE, beside it .FILE.checked (the size and the time of
change that the file had when its SHA-256 was right) and .FILE.lock. What is in it may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from trainers.data.prepared.shards import MANIFEST, Manifest, read_manifest
from trainers.errors import UserError
from trainers.files import TEMPORARY, cache_folder, hash_file, locked, write_whole

FETCHERS: dict[str, Callable[[str, Path, str | None], bool]] = {}
"""By scheme (`s3`): write what is at an address to a path, checked against a SHA-256; False if nothing is there."""


def remote_set(address: str, name: str, path: str) -> tuple[Manifest | None, Callable[[str], Path]]:
    """The manifest, fetched now (None: nothing is there), and what brings another file of the set to this node."""
    fetch = FETCHERS.get(address.partition("://")[0])
    if fetch is None:
        raise UserError(f"{path}: AGFT_PREPARED: {address}: nothing here can read such an address")
    kept = cache_folder() / "datasets"
    kept.mkdir(parents=True, exist_ok=True)
    fresh = kept / f"{name}.{secrets.token_hex(4)}{TEMPORARY}"
    try:
        if not fetch(f"{address}/{MANIFEST}", fresh, None):
            return None, kept.joinpath
        manifest = read_manifest(fresh)
        content = hashlib.sha256(fresh.read_bytes()).hexdigest()
    finally:
        fresh.unlink(missing_ok=True)
    assert manifest is not None
    return manifest, _Kept(address, kept / f"{name}-{content[:16]}", manifest.files())


@dataclass(frozen=True)
class _Kept:
    """`kept(file)`: the file of the set at `address` on this node, its SHA-256 right, fetched if it is not."""

    address: str
    folder: Path
    wanted: dict[str, str]  # SHA-256 by file

    def __call__(self, file: str) -> Path:
        here, sha256 = self.folder / file, self.wanted[file]
        with locked(self.folder / f".{file}.lock"):
            if not self._good(file):
                for unfinished in self.folder.glob(f".{file}.*/"):  # the fetcher's, if it was killed
                    shutil.rmtree(unfinished)
                if not FETCHERS[self.address.partition("://")[0]](f"{self.address}/{file}", here, sha256):
                    raise UserError(f"{self.address}/{file}: not there; prepare the set again")
                self._note(file)
        return here

    def _good(self, file: str) -> bool:
        """A file that has not been touched since it was checked is not read again: a set may have 193 GB."""
        here, note = self.folder / file, self.folder / f".{file}.checked"
        if not here.is_file():
            return False
        try:
            if json.loads(note.read_text()) == self._stamp(file):
                return True
        except (OSError, ValueError):
            pass
        good = hash_file(here) == self.wanted[file]
        if good:
            self._note(file)
        return good

    def _note(self, file: str) -> None:
        write_whole(self.folder / f".{file}.checked", json.dumps(self._stamp(file)).encode())

    def _stamp(self, file: str) -> list[int]:
        found = (self.folder / file).stat()
        return [found.st_size, found.st_mtime_ns]
