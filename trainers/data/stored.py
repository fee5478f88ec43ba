"""Where datasets are, and how a set that was not drawn is loaded: prepared (here or in S3), or small and decoded.

Environment: `AGFT_DATA`, the folder of the datasets' own files (default ~/.agft/data); `AGFT_PREPARED`, the folder or
`s3://` prefix of the prepared sets (default: `prepared` in it).
"""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

from trainers.data.base import DatasetEntry, ImageSet, RawSet, safe_name
from trainers.data.pictures import listed
from trainers.data.prepared.remote import remote_set
from trainers.data.prepared.shards import DIGESTS, LABELS, MANIFEST, Manifest, ShardedImages, differences, read_manifest
from trainers.errors import NotPrepared, UserError

IN_MEMORY_BYTES = 300 << 20  # of decoded pixels: sets up to this size are read from their own files where unprepared
READ_WHOLE_BYTES = 64 << 20  # of image files: folders up to this size are read in seconds, before anything starts


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


def set_at(place: str | Path, entry: DatasetEntry) -> str:
    """The folder, or the address, of one prepared set."""
    return f"{place}/{safe_name(entry.name)}"


def prepare_command(entry: DatasetEntry) -> str:
    return f"agft data prepare {shlex.quote(entry.name)}"


def state(entry: DatasetEntry) -> str:
    """`drawn`, `prepared`, `raw` (its own files seem to be there) or `missing`; of a remote place, without a look."""
    if entry.files is None:
        return "drawn"
    place = prepared_place()
    if not is_remote(place) and Path(set_at(place, entry), MANIFEST).is_file():
        return "prepared"
    return "raw" if (data_root() / entry.files.marker).exists() else "missing"


def _decodable(entry: DatasetEntry) -> bool:
    """Its own files are here, and so few that nobody needs to prepare them."""
    assert entry.files is not None
    return state(entry) == "raw" and entry.num_images * 3 * entry.files.size**2 <= IN_MEMORY_BYTES


def why_not_ready(entry: DatasetEntry) -> str | None:
    """What to do before the set can be loaded here, in a sentence; None if it can, or if only a look at S3 can tell."""
    place = prepared_place()
    if state(entry) in ("drawn", "prepared") or is_remote(place) or _decodable(entry):
        return None
    return f"{entry.name!r} is not prepared (looked in {place}); run: {prepare_command(entry)}"


def folder_faults(entry: DatasetEntry) -> str | None:
    """Images of a folder that is read as it is and that are none, in one message: as far as their headers tell, and of
    small folders to the last byte."""
    from trainers.data.prepared.decode import fault

    if state(entry) == "prepared":
        return None
    images = read_raw(entry, data_root()).images
    assert isinstance(images, Sequence)
    whole = sum(image.stat().st_size for image in images) <= READ_WHOLE_BYTES
    found = [problem for image in images if (problem := fault(image, whole=whole)) is not None]
    return f"{entry.name}: {listed(found, 'images cannot be read')}" if found else None


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
            why = "an unfinished download or unpacking?" if found < wanted else "are there files of something else?"
            raise UserError(
                f"{entry.name}: {root / entry.files.marker}: {found:,} {what}, where {entry.name} ({entry.split}) has "
                f"{wanted:,}; {why} Remove it and get it again"
            )
    if wrong := [label for label in set(raw.labels) if not 0 <= label < len(raw.classes)]:
        raise UserError(
            f"{entry.name}: {root / entry.files.marker}: label {wrong[0]} is none of 0 to {len(raw.classes) - 1}"
        )
    return raw


def load_stored(entry: DatasetEntry, path: str = "data") -> ImageSet:
    """A prepared set, memory-mapped; else a small one decoded here. `path` is named in the error."""
    place = prepared_place()
    manifest: Manifest | None
    bring: Callable[[str], Path]
    if is_remote(place):
        manifest, bring = remote_set(set_at(place, entry), safe_name(entry.name), path)
    else:
        folder = Path(set_at(place, entry))
        manifest, bring = read_manifest(folder / MANIFEST), folder.joinpath
    if manifest is not None:
        return _mapped(manifest, bring, entry, path)
    if _decodable(entry):
        return _decoded(entry, path)
    raise NotPrepared(f"{path}: {entry.name!r} is not prepared (looked in {place}); run: {prepare_command(entry)}")


def _mapped(manifest: Manifest, bring: Callable[[str], Path], entry: DatasetEntry, path: str) -> ImageSet:
    import numpy as np
    import torch

    if found := differences(manifest, entry):
        raise NotPrepared(f"{path}: {entry.name!r} was prepared differently: {'; '.join(found)}. Remove "
                          f"{set_at(prepared_place(), entry)} and run: {prepare_command(entry)}")  # fmt: skip
    arrays = {}
    for file in (LABELS, DIGESTS):
        where = bring(file)
        try:
            if hashlib.sha256(where.read_bytes()).hexdigest() != manifest.files()[file]:
                raise ValueError("not the SHA-256 of its manifest")
            arrays[file] = np.load(where)
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: {where}: {error}; see `agft data verify {shlex.quote(entry.name)}`") from error
    return ImageSet(
        name=entry.name,
        images=ShardedImages(manifest, bring),
        labels=torch.from_numpy(arrays[LABELS]),
        classes=manifest.classes,
        templates=manifest.templates,
        digests=arrays[DIGESTS],
    )


def _decoded(entry: DatasetEntry, path: str) -> ImageSet:
    """Into memory, from the set's own files."""
    import numpy as np
    import torch

    from trainers.data.prepared.decode import decode

    assert entry.files is not None
    problems = []
    try:
        raw, size = read_raw(entry, data_root()), entry.files.size
        images = np.empty((len(raw.images), 3, size, size), np.uint8)
        for row in range(len(images)):
            try:
                images[row] = decode(raw.images[row], entry.resolution, size)
            except UserError as error:
                problems.append(str(error))
        if problems:
            raise UserError(listed(problems, "images cannot be read"))
    except FileNotFoundError as error:
        raise UserError(f"{path}: {entry.name}: {error.filename}: no such file") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    labels = torch.tensor(list(raw.labels), dtype=torch.int64)
    return ImageSet(entry.name, torch.from_numpy(images), labels, raw.classes, entry.templates)
