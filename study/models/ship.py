"""From a proved checkpoint to a version that never changes: every file put once and read back, the manifest last."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import ChecksumMismatch, Conflict
from infra.failpoint import reach
from study.errors import UserError
from study.models.card import card_files
from study.models.head import model_prefix, read_manifest, reserve_version, versions
from study.models.manifest import Draft, Manifest, Shipped
from study.models.signing import verify as verify_signature
from trainers.schema.records import Weights

WEIGHTS, CONFIG = "open_clip_model.safetensors", "open_clip_config.json"
ExtraFiles = Callable[[Manifest], Mapping[str, bytes]]
"""From a manifest without `files` to further files of the version, by name."""


def ship(
    bucket: str,
    name: str,
    *,
    purpose: Mapping[str, Any],
    weights: Weights,
    files: Mapping[str, bytes],
    draft: Draft,
    extra_files: ExtraFiles | None = None,
) -> Manifest:
    """The finished version's manifest; `weights`: the checkpoint, shipped byte for byte.

    With open_clip_config.json beside them the folder is what open_clip calls a local directory. A version that was
    begun for the same `purpose` is gone on with, and taken as it is if it is complete.
    """
    version, complete = _version(bucket, name, purpose)
    reach("promotion.reserved")
    if complete is not None:
        verify(complete.weights)
        return complete
    prefix = model_prefix(bucket, name, version)
    with tempfile.TemporaryDirectory(prefix="agft-ship-") as folder:
        path = Path(folder) / "best.safetensors"
        storage.get_file(weights.uri, path, sha256=weights.sha256)
        sums = {CONFIG: _put(f"{prefix}/{CONFIG}", _configuration(path, Path(folder) / "export"))}
        stored = _put_weights(path, f"{prefix}/{WEIGHTS}", weights.sha256)
    reach("promotion.weights-shipped")
    own = Shipped(uri=stored.uri, sha256=weights.sha256, bytes=stored.size)
    whole = Manifest(**dict(draft), format=1, version=version, weights=own, source=weights)
    more = extra_files(whole) if extra_files is not None else {}
    for file, data in {**files, **more}.items():
        sums[file] = _put(f"{prefix}/{file}", data, same=False)
    whole = whole.model_copy(update={"files": sums})
    reach("promotion.described")
    try:
        storage.put_json(f"{prefix}/manifest.json", whole.record(), if_absent=True)
    except Conflict:  # another promotion of the very same checkpoint, for the same purpose, was faster
        whole = read_manifest(bucket, name, version)
    reach("promotion.complete")
    return whole


def verify(weights: Weights) -> None:
    """Read a version's weights back; `ChecksumMismatch` or `Missing` if they are not those that were shipped."""
    with tempfile.TemporaryDirectory(prefix="agft-verify-") as folder:
        storage.get_file(weights.uri, Path(folder) / WEIGHTS, sha256=weights.sha256)


def _version(bucket: str, name: str, purpose: Mapping[str, Any]) -> tuple[int, Manifest | None]:
    """A version for this purpose, and its manifest if it is complete."""
    for number, files in sorted(versions(bucket, name).items(), reverse=True):
        if "reserved.json" in files:
            found = storage.get_json(f"{model_prefix(bucket, name, number)}/reserved.json")
            if found is not None and found[0] == purpose:
                return number, read_manifest(bucket, name, number) if "manifest.json" in files else None
    return reserve_version(bucket, name, purpose), None


def _configuration(path: Path, out: Path) -> bytes:
    """open_clip's description of the model; making it loads the weights, which must reproduce their fingerprint."""
    from trainers.model.weights import export_open_clip

    return json.dumps(json.loads((export_open_clip(path, out) / CONFIG).read_text()), indent=2, sort_keys=True).encode()


def _put_weights(path: Path, uri: str, sha256: str) -> storage.StoredObject:
    """Put once, then read back whole: a copy that is not the original is no copy."""
    try:
        stored = storage.put_file(path, uri, sha256=sha256, if_absent=True)
    except Conflict:
        found = storage.head(uri)
        assert found is not None, "what was there a moment ago is immutable"
        stored = found
    storage.get_file(uri, path.with_name("back.safetensors"), sha256=sha256)
    return stored


def _put(uri: str, data: bytes, *, same: bool = True) -> str:
    """Put a small file once; the SHA-256 of what is there. `same`: it must be this, whoever wrote it."""
    with contextlib.suppress(Conflict):  # of an earlier try of this promotion, or a faster one for the same purpose
        storage.put_bytes(uri, data, if_absent=True)
    found = storage.get_bytes(uri)
    digest = hashlib.sha256(data if found is None else found[0]).hexdigest()
    if found is None or (same and found[0] != data):
        raise ChecksumMismatch(f"{uri}: is not what was written there")
    return digest


# `agft pull`: a promoted version as a folder of open_clip's, every byte compared, all of it or nothing.

NEEDED = (CONFIG, WEIGHTS, "manifest.json")
SHOWN_BYTES, SHOWN_SECONDS = 50_000_000, 2.0
RESERVED = "reserved.json"

Say = Callable[[str], None]


def pull(version: Manifest, folder: Path, say: Say, *, public_key: Path | None = None) -> Path:
    """Download `version` to `folder`, which must not exist or be empty; it appears complete or not at all.

    With a `public_key` its signature must hold (`study.models.signing`).

    The weights must have the SHA-256 of the manifest, and every other file the one that the manifest or, where it has
    none, storage knows: `ChecksumMismatch` otherwise. A version that was promoted without a card gets one. Records of
    single images, in folders below the version, stay in S3.
    """
    folder = check_empty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        _fill(version, scratch, say, public_key)
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


def _fill(version: Manifest, folder: Path, say: Say, public_key: Path | None) -> None:
    base = f"{version.prefix}/"
    names = [stored.uri.removeprefix(base) for stored in storage.list_objects(base)]
    for name in dict.fromkeys([*NEEDED, *(n for n in names if "/" not in n and n != RESERVED)]):
        is_weights, size = name == WEIGHTS, version.weights.bytes
        sha256 = version.weights.sha256 if is_weights else version.files.get(name)
        progress = _Progress(name, size, say) if is_weights and size > SHOWN_BYTES else None
        storage.get_file(f"{base}{name}", folder / name, sha256=sha256, on_bytes=progress)
    if public_key is not None:
        verify_signature(folder, public_key, f"{version.model} version {version.version}")
    for name, content in card_files(version).items():
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
