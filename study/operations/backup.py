"""A whole stack as one file: every study of the database, the champions' records, and which objects belong to them.

The file is a tar of JSON: `backup.json` (what it is), `studies/NAME.json` (each as `agft archive` writes it),
`models/...` (HEAD, manifests and whatever else is JSON there, byte for byte) and `objects.json` (address and size of
every object of studies and models). The objects' bytes are many times larger; they are copied beside, on request, by
`backup_objects`. Nothing that can be made again is kept: MLflow's records, Optuna's, frozen embeddings, scratch.

It may be made while studies run. Each study is read in one transaction, before its checkpoints are copied: what is
copied is the row's checkpoint or a newer one, and that is how a study lies after a crash between the two. HEAD is
read before the versions that it names, which never change.
"""

from __future__ import annotations

import contextlib
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import Missing, ServiceError
from infra.provenance import package_versions
from infra.s3 import probe
from infra.stack.processes import write_private
from infra.storage import StoredObject
from study.console import Say
from study.errors import UserError
from study.store.archive import export_study
from study.store.store import StudyStore, study_names

# The bytes behind a backup: objects of studies and models, copied to a folder or to another prefix, and back.
#
# Below the place an object has its key of before (`studies/...`, `models/...`). Each is compared with its SHA-256
# on the way. `objects-seen.json` in the place says what was copied under which ETag, so that a repeated copy moves
# only what has changed.

PREFIXES = ("studies", "models")
SEEN = "objects-seen.json"
S3 = "s3://"
ROUNDS = 5


def objects_of(bucket: str) -> list[StoredObject]:
    """Everything that studies and models keep."""
    return [each for prefix in PREFIXES for each in storage.list_objects(f"{S3}{bucket}/{prefix}")]


def check_place(place: str, bucket: str) -> None:
    """`UserError` for a place that cannot take copies."""
    if not place.startswith(S3):
        return
    named, key = storage.split_uri(place)
    if named == bucket and key.strip("/").split("/")[0] in ("", *PREFIXES, "scratch", "teacher", "mlflow"):
        raise UserError(
            f"{place}: inside what is being copied; use another bucket, or a prefix like {S3}{bucket}/backups/"
        )


def copy_out(bucket: str, place: str, say: Say) -> tuple[int, list[StoredObject]]:
    """Copy to `place` what is not there yet: (number copied, everything there is).

    What goes away meanwhile (a checkpoint that a newer one replaces) has a successor: the listing is made again until
    nothing of it is missing.
    """
    place = place.rstrip("/")
    seen: dict[str, Any] = _seen(place)
    try:
        found = _copy_out(bucket, place, seen, say)
    except BaseException:
        with contextlib.suppress(ServiceError, OSError):  # what ended this is said; the same command goes on from here
            _write_seen(place, seen)
        raise
    _write_seen(place, seen)
    return found


def _copy_out(bucket: str, place: str, seen: dict[str, Any], say: Say) -> tuple[int, list[StoredObject]]:
    copied = 0
    for _ in range(ROUNDS):
        listed, complete = objects_of(bucket), True
        for number, each in enumerate(listed, start=1):
            key = each.uri.removeprefix(f"{S3}{bucket}/")
            if seen.get(key) == each.etag:
                continue
            try:
                _copy(each.uri, f"{place}/{key}")
            except Missing:
                complete = False
                continue
            seen[key] = each.etag
            copied += 1
            if copied % 50 == 0:
                say(f"objects: {number} of {len(listed)}")
        if complete:
            break
    return copied, listed


def copy_back(place: str, bucket: str, keys: Sequence[str], say: Say) -> int:
    """Copy objects by key from `place` into `bucket`; how many that were.

    What is in the bucket already stays; what the place lacks is left out. A place that is not there is an error.
    """
    place, copied = place.rstrip("/"), 0
    if place.startswith(S3):
        probe(storage.split_uri(place)[0])
    elif not Path(place).expanduser().is_dir():
        raise UserError(f"{place}: there is no such folder")
    there = {each.uri.removeprefix(f"{S3}{bucket}/") for each in objects_of(bucket)}
    for number, key in enumerate(keys, start=1):
        if key in there:
            continue
        try:
            _copy(f"{place}/{key}", f"{S3}{bucket}/{key}")
        except Missing:
            continue
        copied += 1
        if copied % 50 == 0:
            say(f"objects: {number} of {len(keys)}")
    return copied


def _copy(source: str, target: str) -> None:
    """One object or file, checked; `Missing` if the source is gone."""
    if source.startswith(S3) and target.startswith(S3):
        storage.copy(source, target)
    elif source.startswith(S3):
        path = Path(target).expanduser()
        path.parent.mkdir(parents=True, exist_ok=True)
        storage.get_file(source, path)
    else:
        path = Path(source).expanduser()
        if not path.is_file():
            raise Missing(f"{source}: no such file")
        storage.put_file(path, target)


def _seen(place: str) -> dict[str, Any]:
    if place.startswith(S3):
        found = storage.get_json(f"{place}/{SEEN}")
        return {} if found is None else dict(found[0])
    path = Path(place).expanduser() / SEEN
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _write_seen(place: str, seen: dict[str, Any]) -> None:
    if place.startswith(S3):
        storage.put_json(f"{place}/{SEEN}", seen)
    else:
        write_private(Path(place).expanduser() / SEEN, json.dumps(seen, indent=1))


FORMAT = "agft-backup/1"
SMALL_BYTES = 8 << 20  # a JSON object that is larger is none of ours


@dataclass(frozen=True)
class Backup:
    """What was put into a backup."""

    place: str
    studies: int
    trials: int
    champions: int
    objects: int
    object_bytes: int
    copied: int | None  # objects copied now; None when only their list was kept


def write_backup(url: str, bucket: str, place: str, *, objects: str | None, say: Say) -> Backup:
    """Write the database at `url` and the records in `bucket` to `place`, a file or an `s3://` address.

    `objects`: folder or `s3://` prefix to copy the objects to; those that are there already are left alone.
    """
    if objects is not None:
        check_place(objects, bucket)
        objects = objects if objects.startswith(S3) else str(Path(objects).expanduser().absolute())
    _check_target(place, bucket)
    with tempfile.TemporaryDirectory(prefix="agft-backup-") as folder:
        part = Path(folder) / "backup.tar"
        with tarfile.open(part, "w") as tar:
            trials, names = 0, sorted(study_names(url))
            for name in names:
                file = Path(folder) / "study.json"
                trials += export_study(StudyStore(url, name), file)["agft_trial"]
                _add(tar, f"studies/{name}.json", file.read_bytes())
            say(f"{len(names)} studies with {trials} trials")
            heads = _models(tar, bucket)
            listed = objects_of(bucket)
            copied = None
            if objects is not None:
                copied, listed = copy_out(bucket, objects, say)
            _add_json(tar, "objects.json", [{"uri": each.uri, "bytes": each.size} for each in listed])
            about = {
                "format": FORMAT, "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "bucket": bucket, "studies": names,
                "champions": heads, "objects": objects, "packages": package_versions(),
            }  # fmt: skip
            _add_json(tar, "backup.json", about)
        _deliver(part, place)
    return Backup(place, len(names), trials, len(heads), len(listed), sum(each.size for each in listed), copied)


def _models(tar: tarfile.TarFile, bucket: str) -> dict[str, Any]:
    """Put every model's JSON into the tar, HEAD as it was first; HEAD by name of the model."""
    base = f"{S3}{bucket}/models"
    found = [each for each in storage.list_objects(base) if each.uri.endswith(".json") and each.size < SMALL_BYTES]
    heads = {}
    for each in sorted(found, key=lambda each: not each.uri.endswith("/HEAD.json")):
        try:
            content = storage.get_bytes(each.uri)
        except Missing:
            content = None
        if content is None:
            continue  # taken away since it was listed
        name = each.uri.removeprefix(f"{S3}{bucket}/")
        _add(tar, name, content[0])
        if name.endswith("/HEAD.json"):
            heads[name.split("/")[1]] = json.loads(content[0])
    for each in storage.list_objects(
        base
    ):  # a version that HEAD took up meanwhile is not named by the HEAD that is kept
        name = each.uri.removeprefix(f"{S3}{bucket}/")
        if each.uri.endswith(".json") and name not in tar.getnames() and not name.endswith("/HEAD.json"):
            content = storage.get_bytes(each.uri)
            if content is not None:
                _add(tar, name, content[0])
    return heads


def _check_target(place: str, bucket: str) -> None:
    if place.startswith(S3):
        named, key = storage.split_uri(place)
        if not key or key.endswith("/"):
            raise UserError(f"{place}: expected the address of a file, like s3://BUCKET/backups/monday.tar")
        if named == bucket and key.split("/")[0] in ("studies", "models", "scratch", "teacher", "mlflow"):
            raise UserError(f"{place}: inside what is being backed up; use another prefix, like s3://{bucket}/backups/")
    elif not Path(place).expanduser().absolute().parent.is_dir():
        raise UserError(f"{place}: there is no such folder")


def is_backup(path: Path) -> bool:
    """Whether a file is a tar as `write_backup` writes them."""
    try:
        with tarfile.open(path, "r:") as tar:
            return "backup.json" in tar.getnames()
    except tarfile.TarError:
        return False


def refuse_object(place: str) -> None:
    """`UserError` if something is at an address already."""
    if storage.head(place) is not None:
        raise UserError(f"{place}: is there already; nothing was written. Give another address, or --replace it")


def _deliver(part: Path, place: str) -> None:
    """A backup appears whole, or the one before it stays."""
    if place.startswith(S3):
        storage.put_file(part, place)
        return
    target = Path(place).expanduser()
    beside = target.with_name(f".{target.name}.part")
    try:
        beside.touch(mode=0o600)
        beside.write_bytes(part.read_bytes())
        beside.replace(target)
    except OSError as error:
        raise UserError(f"{place}: cannot be written: {error.strerror}") from None
    finally:
        beside.unlink(missing_ok=True)


def _add_json(tar: tarfile.TarFile, name: str, value: Any) -> None:
    _add(tar, name, json.dumps(value, indent=1).encode())


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
    tar.addfile(entry, io.BytesIO(data))
