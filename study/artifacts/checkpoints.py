"""Where a trial's bytes are: one object a role (latest, best) under a prefix that one group of workers writes to.

s3://BUCKET/studies/STUDY-CREATED/trials/NUMBER/aTOKEN.GROUP/latest.safetensors   full state, replaced every epoch
s3://BUCKET/studies/STUDY-CREATED/trials/NUMBER/aTOKEN.GROUP/best.safetensors     weights of the best epoch
s3://BUCKET/studies/STUDY-CREATED/logs/...       what its drivers printed
s3://BUCKET/models/NAME/VERSION/...              promoted, never changed
s3://BUCKET/models/NAME/HEAD.json                which version is the champion
s3://BUCKET/scratch/STUDY-CREATED/...            Ray's own files and claims of groups, deleted with the study's end
s3://BUCKET/teacher/KEY.safetensors              a frozen model's embeddings of a training set, for all studies; may be
                                                 deleted at any time

TOKEN is the driver's lease, GROUP counts the groups of workers that one driver started for the trial: Ray starts a new
group when it believes the old one dead, and a machine that is only cut off from Ray may still reach S3.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra import storage
from infra.errors import ChecksumMismatch, Conflict, Missing
from trainers.schema.records import Weights
from trainers.wiring import Restored

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
    """What every URI of one driver's attempt starts with: one that lost its lease can only write under its own."""
    return f"{trial_prefix(bucket, slug, number)}/a{token:06d}"


def group_prefix(attempt: str, group: int) -> str:
    """URI of what one group of workers keeps; later ones sort after earlier ones."""
    return f"{attempt}.{group:03d}"


def _object(prefix: str, role: str) -> str:
    return f"{prefix}/{role}.safetensors"


def _weights(stored: storage.StoredObject) -> Weights:
    """A store that forgets metadata is read for the SHA-256."""
    sha256 = stored.sha256 or storage.hash_object(stored.uri)
    return Weights(uri=stored.uri, sha256=sha256, bytes=stored.size)


def keep_file(attempt: str, group: int, path: Path, role: str) -> Weights:
    """Store a file under its role where only this group of workers writes; one PUT, so the object is always whole."""
    assert role in ROLES, role
    return _weights(storage.put_file(path, _object(group_prefix(attempt, group), role)))


def claim_group(bucket: str, slug: str, number: int, token: int, known: Mapping[str, str] | None = None) -> int:
    """Take the next group's prefix, which nobody else writes to, and copy there what the trial goes on from.

    Called by one process of a group, before all of them `fetch_state`. `known`: role -> URI of what the study has on
    record, used where the trial's prefix holds nothing: an imported study's files lie under the prefix of the study
    that it was exported from.
    """
    group = 1
    while not _is_first(f"{scratch_prefix(bucket, slug)}/claims/{number}/a{token:06d}.{group:03d}"):
        group += 1
    trial, own = trial_prefix(bucket, slug, number), group_prefix(attempt_prefix(bucket, slug, number, token), group)
    if storage.head(_object(own, "latest")) is not None:
        return group  # the store ignores conditions: this is the place of the group before, and its state is the newest
    copied: dict[str, storage.StoredObject] = {}
    # Until nothing changes: a group that Ray gave up may be writing.
    while (found := _newest(trial, known, but=own)) != copied:
        for role, stored in found.items():
            storage.copy(stored.uri, _object(own, role))
        copied = found
    return group


def _is_first(uri: str) -> bool:
    try:
        storage.put_bytes(uri, b"claimed", if_absent=True)
    except Conflict:
        return False
    return True


def _newest(trial: str, known: Mapping[str, str] | None, *, but: str) -> dict[str, storage.StoredObject]:
    """Role -> what the newest group left, not looking below the prefix `but`; empty where there is no state."""
    found: dict[str, storage.StoredObject] = {}
    for stored in sorted(storage.list_objects(f"{trial}/"), key=lambda item: item.uri):
        if stored.uri.rpartition("/")[0] != but:
            found[Path(stored.uri).stem] = stored  # the highest token and group come last and win
    for role, uri in (known or {}).items() if not found else ():
        stored_before = storage.head(uri)
        if stored_before is not None:
            found[role] = stored_before
    return found if "latest" in found else {}


def fetch_state(attempt: str, group: int, workdir: Path) -> Restored | None:
    """The state that `claim_group` found, checked against its SHA-256, with the best weights; None for a new trial."""
    own = group_prefix(attempt, group)
    latest, best = storage.head(_object(own, "latest")), storage.head(_object(own, "best"))
    if latest is None:
        return None
    state = workdir / "resume.safetensors"
    storage.get_file(latest.uri, state, sha256=latest.sha256)
    return Restored(state=state, latest=_weights(latest), best=_weights(best) if best else None)


def delete_superseded(trial: str, kept: Mapping[str, str]) -> None:
    """Of a trial that has ended, keep one object a role: what is on record (`kept`: role -> URI), else the newest."""
    found = sorted(storage.list_objects(f"{trial}/"), key=lambda item: item.uri)
    keep = {**{Path(stored.uri).stem: stored.uri for stored in found}, **kept}.values()
    for stored in found:
        if stored.uri not in keep:
            storage.delete(stored.uri)


@dataclass(frozen=True)
class SharedPrefix:
    """Files that all studies of a bucket share, by name below `uri`; `trainers.teacher.cache.SharedFiles`."""

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
