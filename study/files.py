"""Where a trial's bytes are: one object a role (latest, best) under a prefix that carries the lease token.

s3://BUCKET/studies/STUDY-CREATED/trials/NUMBER/aTOKEN/latest.safetensors   full state, replaced every epoch
s3://BUCKET/studies/STUDY-CREATED/trials/NUMBER/aTOKEN/best.safetensors     weights of the best epoch
s3://BUCKET/studies/STUDY-CREATED/logs/...                           what its drivers printed
s3://BUCKET/models/NAME/VERSION/...                                  promoted, never changed
s3://BUCKET/models/NAME/HEAD.json                                    which version is the champion
s3://BUCKET/scratch/STUDY-CREATED/...                                      Ray's own files, deleted with the study's end
s3://BUCKET/teacher/KEY.safetensors                                  a frozen model's embeddings of a training set,
                                                                     for all studies; may be deleted at any time
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import ChecksumMismatch, Conflict, Missing
from trainers.wiring import Restored

__all__ = [
    "SharedPrefix",
    "attempt_prefix",
    "delete_superseded",
    "fetch_newest",
    "keep_file",
    "scratch_prefix",
    "study_prefix",
    "trial_prefix",
]

log = logging.getLogger("agft")

ROLES = ("latest", "best")


def study_prefix(bucket: str, slug: str) -> str:
    """URI of everything that a study keeps, without a closing slash. `slug`: its name and time of creation."""
    return f"s3://{bucket}/studies/{slug}"


def scratch_prefix(bucket: str, slug: str) -> str:
    """URI of Ray's own files of a study, without a closing slash."""
    return f"s3://{bucket}/scratch/{slug}"


def trial_prefix(bucket: str, slug: str, number: int) -> str:
    """URI of everything that a trial keeps, without a closing slash."""
    return f"{study_prefix(bucket, slug)}/trials/{number}"


def attempt_prefix(bucket: str, slug: str, number: int, token: int) -> str:
    """URI of what one attempt keeps: a driver that lost its lease can only write under its own token."""
    return f"{trial_prefix(bucket, slug, number)}/a{token:06d}"


def _object(prefix: str, role: str) -> str:
    return f"{prefix}/{role}.safetensors"


def _describe(stored: storage.StoredObject) -> dict[str, Any]:
    return {"uri": stored.uri, "sha256": stored.sha256, "bytes": stored.size}


def keep_file(prefix: str, path: Path, role: str) -> dict[str, Any]:
    """Store a file under its role; one PUT, so the object is always whole. Returns URI, SHA-256 and size."""
    assert role in ROLES, role
    return _describe(storage.put_file(path, _object(prefix, role)))


def fetch_newest(trial: str, workdir: Path, known: Mapping[str, str] | None = None) -> Restored | None:
    """The newest attempt's state, checked against its SHA-256, with the newest best weights; None for a new trial.

    `known`: role -> URI of what the study has on record, used where the trial's prefix holds nothing: an imported
    study's files lie under the prefix of the study that it was exported from.
    """
    found: dict[str, storage.StoredObject] = {}
    for stored in sorted(storage.list_objects(f"{trial}/"), key=lambda item: item.uri):
        found[Path(stored.uri).stem] = stored  # the highest token comes last and wins
    for role, uri in (known or {}).items() if not found else ():
        stored_before = storage.head(uri)
        if stored_before is not None:
            found[role] = stored_before
    if "latest" not in found:
        return None
    latest = storage.head(found["latest"].uri)
    best = storage.head(found["best"].uri) if "best" in found else None
    assert latest is not None, "an object that is listed is there: only the driver deletes, between attempts"
    state = workdir / "resume.safetensors"
    storage.get_file(latest.uri, state, sha256=latest.sha256)
    return Restored(state=state, latest=_describe(latest), best=_describe(best) if best else None)


def delete_superseded(trial: str) -> None:
    """Keep one object a role: what an earlier attempt left goes once a later one has the same role."""
    newest: dict[str, str] = {}
    for stored in sorted(storage.list_objects(f"{trial}/"), key=lambda item: item.uri):
        role = Path(stored.uri).stem
        if role in newest:
            storage.delete(newest[role])
        newest[role] = stored.uri


@dataclass(frozen=True)
class SharedPrefix:
    """Files that all studies of a bucket share, by name below `uri`; `trainers.teacher_cache.SharedFiles`."""

    uri: str

    def get(self, name: str, path: Path) -> bool:
        """Download what is stored under `name`; False if nothing is, or what has not its SHA-256 (and is deleted)."""
        uri = f"{self.uri}/{name}"
        try:
            storage.get_file(uri, path)
        except Missing:
            return False
        except ChecksumMismatch as error:
            log.warning("deleted, to be made again: %s", error)
            storage.delete(uri)
            return False
        return True

    def put(self, path: Path, name: str, *, replace: bool = False) -> None:
        """Store a file; without `replace` the first one stays, whoever wrote it."""
        uri = f"{self.uri}/{name}"
        if not replace and storage.head(uri) is not None:
            return  # a refused upload would still have sent every byte
        try:
            storage.put_file(path, uri, if_absent=not replace)
        except Conflict:
            return
