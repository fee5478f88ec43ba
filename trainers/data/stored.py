"""Where datasets are, and how a set that was not drawn is loaded: prepared (here or in S3), or small and decoded.

Environment: `AGFT_DATA`, the folder of the datasets' own files (default ~/.agft/data); `AGFT_PREPARED`, the folder or
`s3://` prefix of the prepared sets (default: `prepared` in it).
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from trainers.data.base import DatasetEntry, ImageSet, RawSet
from trainers.data.shards import DIGESTS, LABELS, MANIFEST, Manifest, ShardedImages, differences, read_manifest
from trainers.disk import cache_folder
from trainers.errors import NotPrepared, UserError
from trainers.filelock import locked

__all__ = ["FETCHERS", "data_root", "is_remote", "load_stored", "prepared_place", "read_raw", "state", "why_not_ready"]

IN_MEMORY_BYTES = 300 << 20  # of decoded pixels: sets up to this size are read from their own files where unprepared

FETCHERS: dict[str, Callable[[str, Path, str | None], bool]] = {}
"""By scheme (`s3`): write what is at an address to a path, checked against a SHA-256; False if nothing is there."""


def data_root() -> Path:
    """The folder of the datasets' own files."""
    return Path(os.environ.get("AGFT_DATA") or Path.home() / ".agft" / "data").expanduser()


def prepared_place() -> str:
    """The folder, or the address, of the prepared sets."""
    named = os.environ.get("AGFT_PREPARED")
    if not named:
        return str(data_root() / "prepared")
    return named.rstrip("/") if is_remote(named) else str(Path(named).expanduser())


def is_remote(place: str) -> bool:
    return "://" in place


def state(entry: DatasetEntry) -> str:
    """`drawn`, `prepared`, `raw` (its own files seem to be there) or `missing`; of a remote place, without a look."""
    if entry.files is None:
        return "drawn"
    place = prepared_place()
    if not is_remote(place) and (Path(place) / entry.name / MANIFEST).is_file():
        return "prepared"
    return "raw" if (data_root() / entry.files.marker).exists() else "missing"


def fits_in_memory(entry: DatasetEntry) -> bool:
    assert entry.files is not None
    return entry.num_images * 3 * entry.files.size**2 <= IN_MEMORY_BYTES


def why_not_ready(entry: DatasetEntry) -> str | None:
    """What to do before the set can be loaded here, in a sentence; None if it can, or if only a look at S3 can tell."""
    found, place = state(entry), prepared_place()
    if found in ("drawn", "prepared") or is_remote(place) or (found == "raw" and fits_in_memory(entry)):
        return None
    return f"{entry.name!r} is not prepared (looked in {place}); run: agft data prepare {entry.name}"


def read_raw(entry: DatasetEntry, root: Path) -> RawSet:
    """A set's own files, with exactly as many images and classes as the table says. Decodes nothing."""
    assert entry.files is not None, f"{entry.name} is drawn"
    try:
        raw = entry.files.read(root)
    except OSError as error:
        raise UserError(f"{entry.name}: {error.filename or root}: {(error.strerror or str(error)).lower()}") from error
    except UserError as error:
        raise UserError(f"{entry.name}: {error}") from error
    for what, found, wanted in (
        ("images", len(raw.images), entry.num_images),
        ("labels", len(raw.labels), entry.num_images),
        ("classes", len(raw.classes), entry.num_classes),
    ):
        if found != wanted:
            raise UserError(
                f"{entry.name}: {root / entry.files.marker}: {found:,} {what}, where {entry.name} ({entry.split}) has "
                f"{wanted:,}; an unfinished download or unpacking? Remove it and get it again"
            )
    if wrong := [label for label in set(raw.labels) if not 0 <= label < len(raw.classes)]:
        raise UserError(f"{entry.name}: label {wrong[0]} is none of 0 to {len(raw.classes) - 1}")
    return raw


def load_stored(entry: DatasetEntry, path: str = "data") -> ImageSet:
    """A prepared set, memory-mapped; else a small one decoded here. `path` is named in the error."""
    place = prepared_place()
    manifest, bring = _remote(place, entry, path) if is_remote(place) else _local(Path(place) / entry.name)
    if manifest is not None:
        return _mapped(manifest, bring, entry, path)
    if (reason := why_not_ready(entry)) is not None or is_remote(place):
        raise NotPrepared(f"{path}: {reason or f'{entry.name!r} is not prepared: nothing at {place}/{entry.name}'}")
    return _decoded(entry)


def _local(folder: Path) -> tuple[Manifest | None, Callable[[str], Path]]:
    return read_manifest(folder / MANIFEST), folder.joinpath


def _remote(place: str, entry: DatasetEntry, path: str) -> tuple[Manifest | None, Callable[[str], Path]]:
    """The manifest is fetched every time, every other file at its first use; kept under the manifest's SHA-256."""
    fetch = FETCHERS.get(place.partition("://")[0])
    if fetch is None:
        raise UserError(f"{path}: AGFT_PREPARED={place}: nothing here can read such an address")
    kept = cache_folder() / "datasets"
    kept.mkdir(parents=True, exist_ok=True)
    fresh = kept / f"{entry.name}.{secrets.token_hex(4)}.tmp"
    try:
        if not fetch(f"{place}/{entry.name}/{MANIFEST}", fresh, None):
            return None, kept.joinpath
        manifest = read_manifest(fresh)
        assert manifest is not None
        folder = kept / f"{entry.name}-{hashlib.sha256(fresh.read_bytes()).hexdigest()[:16]}"
    finally:
        fresh.unlink(missing_ok=True)
    wanted = manifest.files()

    def bring(file: str) -> Path:
        here = folder / file
        if not here.is_file():
            with locked(folder / f".{file}.lock"):
                if not here.is_file() and not fetch(f"{place}/{entry.name}/{file}", here, wanted[file]):
                    raise UserError(f"{place}/{entry.name}/{file}: not there; prepare {entry.name} again")
        return here

    return manifest, bring


def _mapped(manifest: Manifest, bring: Callable[[str], Path], entry: DatasetEntry, path: str) -> ImageSet:
    import numpy as np
    import torch

    if found := differences(manifest, entry):
        raise NotPrepared(f"{path}: {entry.name!r} was prepared differently: {'; '.join(found)}. Remove "
                          f"{prepared_place()}/{entry.name} and run: agft data prepare {entry.name}")  # fmt: skip
    arrays = {}
    for file in (LABELS, DIGESTS):
        where = bring(file)
        try:
            if hashlib.sha256(where.read_bytes()).hexdigest() != manifest.files()[file]:
                raise ValueError("not the SHA-256 of its manifest")
            arrays[file] = np.load(where)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {where}: {error}; see `agft data verify {entry.name}`") from error
    return ImageSet(
        name=entry.name,
        images=ShardedImages(manifest, bring),
        labels=torch.from_numpy(arrays[LABELS]),
        classes=manifest.classes,
        templates=manifest.templates,
        digests=arrays[DIGESTS],
    )


def _decoded(entry: DatasetEntry) -> ImageSet:
    """Into memory, from the set's own files."""
    import numpy as np
    import torch

    from trainers.data.decode import decode

    assert entry.files is not None
    raw, size = read_raw(entry, data_root()), entry.files.size
    images = np.empty((len(raw.images), 3, size, size), np.uint8)
    for row in range(len(images)):
        images[row] = decode(raw.images[row], entry.resolution, size)
    labels = torch.tensor(list(raw.labels), dtype=torch.int64)
    return ImageSet(entry.name, torch.from_numpy(images), labels, raw.classes, entry.templates)
