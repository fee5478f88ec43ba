"""`agft pull`: a promoted version as a folder of open_clip's, every byte compared, all of it or nothing."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from infra import storage
from study.catalog import Version
from study.errors import UserError
from study.model_card import card_files

__all__ = ["check_empty", "pull"]

NEEDED = ("open_clip_config.json", "open_clip_model.safetensors", "manifest.json")
SHOWN_BYTES, SHOWN_SECONDS = 50_000_000, 2.0
RESERVED = "reserved.json"

Say = Callable[[str], None]


def pull(version: Version, folder: Path, say: Say) -> Path:
    """Download `version` to `folder`, which must not exist or be empty; it appears complete or not at all.

    The weights must have the SHA-256 of the manifest, and every other file the one that the manifest or, where it has
    none, storage knows: `ChecksumMismatch` otherwise. A version that was promoted without a card gets one. Records of
    single images, in folders below the version, stay in S3.
    """
    folder = check_empty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _fill(version, scratch, say)
        scratch.chmod(0o755)
        scratch.rename(folder)  # over an empty folder, too
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return folder


def check_empty(folder: Path) -> Path:
    """`folder`, its ~ resolved; `UserError` if there is something in it."""
    folder = folder.expanduser()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists and is not an empty folder; nothing was written")
    return folder


def _fill(version: Version, folder: Path, say: Say) -> None:
    base = f"{version.prefix}/"
    names = [stored.uri.removeprefix(base) for stored in storage.list_objects(base)]
    weights, promised = version.manifest["weights"], version.manifest.get("files") or {}
    for name in dict.fromkeys([*NEEDED, *(n for n in names if "/" not in n and n != RESERVED)]):
        is_weights = name == "open_clip_model.safetensors"
        sha256 = weights["sha256"] if is_weights else promised.get(name)
        large = is_weights and (weights.get("bytes") or 0) > SHOWN_BYTES
        progress = _Progress(name, weights["bytes"], say) if large else None
        storage.get_file(f"{base}{name}", folder / name, sha256=sha256, on_bytes=progress)
    for name, content in card_files(version.manifest).items():
        if not (folder / name).exists():
            (folder / name).write_bytes(content)


class _Progress:
    """Every two seconds: how much has come, and how long the rest will take."""

    def __init__(self, name: str, size: int, say: Say) -> None:
        self.name, self.size, self.say, self.done = name, size, say, 0
        self.started = self.told = time.monotonic()

    def __call__(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.told >= SHOWN_SECONDS:
            self.told = now
            left = (now - self.started) / self.done * max(0, self.size - self.done)
            self.say(f"{self.name}: {self.done / 1e6:.0f} of {self.size / 1e6:.0f} MB, about {left:.0f} s left")
