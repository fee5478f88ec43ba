"""Decode a dataset once: its files become a prepared set, part by part, by all cores, restartable at any moment.

Every part is a finished file or nothing. A part that an earlier, killed run finished is used again if it was made for
the same plan (the same files in the same order, with the same labels) and still has its SHA-256; the manifest, without
which nothing is a prepared set, comes last. One process prepares a set; others wait for it and find it done.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.data.base import DatasetEntry, RawSet, alike
from trainers.data.folder import same_prompts
from trainers.data.prepared.decode import TRANSFORMS
from trainers.data.prepared.parts import Part, made_parts
from trainers.data.prepared.shards import (
    DIGESTS,
    FORMAT,
    LABELS,
    MANIFEST,
    Manifest,
    differences,
    read_manifest,
    shard_size,
)
from trainers.data.progress import Progress
from trainers.data.stored import read_raw, set_at
from trainers.errors import UserError
from trainers.files import TEMPORARY, hash_file, locked, write_whole

if TYPE_CHECKING:
    from numpy.typing import NDArray


Say = Callable[[str], None]


def prepare(
    entry: DatasetEntry, root: Path, place: Path, *, workers: int | None = None, say: Say = lambda text: None
) -> Manifest:
    """The manifest of `place`/NAME, prepared now from the files below `root` if it is not there.

    `workers`: processes that decode (default: one a core). Raises `UserError` for what is wrong with the files, OSError
    for a disk that is full or cannot be written; what is finished by then is kept for the next run.
    """
    assert entry.files is not None, f"{entry.name} is drawn"
    folder = Path(set_at(place, entry))
    with locked(
        place / f".{folder.name}.lock", waiting=lambda: say(f"another process prepares {entry.name}; waiting for it")
    ):
        manifest = read_manifest(folder / MANIFEST)
        if manifest is not None:
            if found := differences(manifest, entry):
                raise UserError(f"{folder}: was prepared differently: {'; '.join(found)}. Remove it to prepare it anew")
            say(f"{entry.name}: prepared already, in {folder}")
            return manifest
        say(f"{entry.name}: reading {root / entry.files.marker} ...")
        raw = read_raw(entry, root)
        for remark in entry.remarks or same_prompts(raw.classes, alike(raw.classes, entry.templates)):
            say(f"{entry.name}: {remark}")
        source = _source(entry, raw, root)
        folder.mkdir(exist_ok=True)
        manifest = _write(entry, raw, source, folder, workers or _cores(), say)
    say(f"{entry.name}: prepared {manifest.shape[0]:,} images of {len(manifest.classes)} classes in {folder}")
    return manifest


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _source(entry: DatasetEntry, raw: RawSet, root: Path) -> dict[str, Any]:
    """What is prepared, as JSON values: a hash over the files' names, sizes and labels; missing files all at once."""
    listing = hashlib.sha256()
    missing: list[Path] = []
    if isinstance(raw.images, Sequence):
        for file, label in zip(raw.images, raw.labels, strict=True):
            try:
                listing.update(f"{_named(file, root)} {file.stat().st_size} {label}\n".encode(errors="surrogateescape"))
            except FileNotFoundError:
                missing.append(file)
    else:
        listing.update(repr(tuple(raw.labels)).encode())
    if missing:
        raise UserError(f"{entry.name}: {missing[0]}: no such file; {len(missing):,} of {len(raw.images):,} images are "
                        "missing: an unfinished download or unpacking? Remove it and get it again")  # fmt: skip
    described = {_named(file, root): hash_file(file) for file in raw.described_by}
    return {"sha256": listing.hexdigest(), "described_by": described, "class_names": raw.named_by}


def _named(file: Path, root: Path) -> str:
    """Without the folder of all datasets, which may be another on the next machine; an image folder lies anywhere."""
    return str(file.relative_to(root) if file.is_relative_to(root) else file)


def _write(entry: DatasetEntry, raw: RawSet, source: dict[str, Any], folder: Path, workers: int, say: Say) -> Manifest:
    """All files of a prepared set, the manifest last."""
    import numpy as np

    assert entry.files is not None
    number, size = len(raw.images), entry.files.size
    each = shard_size(number, 3 * size**2)
    plan = hashlib.sha256(json.dumps(
        [FORMAT, entry.name, number, size, each, entry.resolution, TRANSFORMS[entry.resolution], source]
    ).encode()).hexdigest()  # fmt: skip
    parts = [
        Part(shard, folder / f"images-{shard:05d}.npy", plan, entry.resolution, size, first, min(each, number - first))
        for shard, first in enumerate(range(0, number, each))
    ]
    _clear(folder, {part.path.name for part in parts} | {part.note.name for part in parts})
    progress = Progress(entry.name, number, say)
    made = made_parts(parts, raw.images, workers, progress)
    if progress.kept:
        say(f"{entry.name}: {progress.kept:,} images were ready from an earlier run")
    arrays: dict[str, NDArray[Any]] = {
        LABELS: np.asarray(raw.labels, np.int64),
        DIGESTS: np.frombuffer(b"".join(part.digests for part in made), np.uint8).reshape(number, 32),
    }
    sums = {}
    for file, array in arrays.items():
        content = io.BytesIO()
        np.save(content, array)
        sums[file] = hashlib.sha256(content.getvalue()).hexdigest()
        write_whole(folder / file, content.getvalue())
    manifest = Manifest(
        format=FORMAT,
        name=entry.name,
        split=entry.split,
        classes=raw.classes,
        templates=entry.templates,
        names=entry.names,
        duplicate_prompts=tuple(alike(raw.classes, entry.templates)),
        transform=TRANSFORMS[entry.resolution],
        shape=(number, 3, size, size),
        images_per_shard=each,
        shards=tuple(part.shard for part in made),
        labels_sha256=sums[LABELS],
        digests_sha256=sums[DIGESTS],
        source=source,
        made_with={package: version(package) for package in ("agft-study", "numpy", "pillow", "timm")},
    )
    write_whole(folder / MANIFEST, manifest.text().encode())
    for part in parts:
        part.note.unlink(missing_ok=True)
    return manifest


def _clear(folder: Path, kept: set[str]) -> None:
    """Remove what killed runs left unfinished, and parts of another plan's number; only the lock's owner is here."""
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        elif item.name not in kept or item.name.endswith(TEMPORARY):
            item.unlink()
