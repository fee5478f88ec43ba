"""The bytes behind a backup: objects of studies and models, copied to a folder or to another prefix, and back.

Below the place an object has its key of before (`studies/...`, `models/...`). Each is compared with its SHA-256 on the
way. `objects-seen.json` in the place says what was copied under which ETag, so that a repeated copy moves only what has
changed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import Missing
from infra.processes import write_private
from infra.storage import StoredObject
from study.errors import UserError

__all__ = ["PREFIXES", "check_place", "copy_back", "copy_out", "objects_of"]

PREFIXES = ("studies", "models")
SEEN = "objects-seen.json"
S3 = "s3://"
ROUNDS = 5

Say = Callable[[str], None]


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
    _write_seen(place, seen)
    return copied, listed


def copy_back(place: str, bucket: str, keys: Sequence[str], say: Say) -> int:
    """Copy objects by key from `place` into `bucket`; how many that were.

    What is in the bucket already stays; what the place lacks is left out.
    """
    place, copied = place.rstrip("/"), 0
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
