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

import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import Missing
from infra.provenance import package_versions
from study.archive import export_study
from study.backup_objects import check_place, copy_out, objects_of
from study.errors import UserError
from study.store import StudyStore, study_names

__all__ = ["FORMAT", "Backup", "write_backup"]

FORMAT = "agft-backup/1"
S3 = "s3://"
SMALL_BYTES = 8 << 20  # a JSON object that is larger is none of ours

Say = Callable[[str], None]


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
