"""The champion of a model name: `models/NAME/HEAD.json`, swapped atomically; the one truth that MLflow mirrors.

HEAD holds `{champion, previous, generation, record}` (version numbers, and the name of the newest record). A version's
number is reserved by a conditional put; its manifest, written last and once, makes it complete.

`models/NAME/generations/` keeps a record of every move: who, when, why, from which promotion, with which gates. A
record is put before HEAD names it, and names the one before it: the moves that HEAD's chain holds are those that
happened, one after the other. A record that no chain holds is of a move that was cut short or lost a race.
"""

from __future__ import annotations

import getpass
import logging
import os
import secrets
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from infra import storage
from infra.errors import Conflict, ServiceError
from infra.failpoint import reach
from study.models.manifest import Manifest, parse_manifest

log = logging.getLogger("agft")


@dataclass(frozen=True)
class Head:
    """Which version is the champion, which was it before, and how often that has changed."""

    champion: int | None = None
    previous: int | None = None
    generation: int = 0
    record: str | None = None


@dataclass(frozen=True)
class Move:
    """Why the champion changes. `action`: promotion or rollback; `facts`: study, trial, gates and the like."""

    action: str
    why: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Generation:
    """One move of HEAD, as recorded; `before`: the record of the move before it."""

    name: str
    generation: int
    champion: int
    previous: int | None
    action: str
    why: str
    who: str
    when_ms: int
    before: str | None
    facts: dict[str, Any]


def model_prefix(bucket: str, name: str, version: int | None = None) -> str:
    """URI of a model, or of one of its versions, without a closing slash."""
    base = f"s3://{bucket}/models/{name}"
    return base if version is None else f"{base}/{version:04d}"


def model_names(bucket: str) -> list[str]:
    """Every name that has had a champion."""
    base = f"s3://{bucket}/models"
    parts = [stored.uri.removeprefix(f"{base}/").split("/") for stored in storage.list_objects(base)]
    return sorted({part[0] for part in parts if part[1:] == ["HEAD.json"]})


def versions(bucket: str, name: str) -> dict[int, set[str]]:
    """Version numbers that are taken, with the files right below each."""
    base = f"{model_prefix(bucket, name)}/"
    found: dict[int, set[str]] = {}
    for stored in storage.list_objects(base):
        number, _, rest = stored.uri.removeprefix(base).partition("/")
        if number.isdigit() and rest:
            found.setdefault(int(number), set()).add(rest)
    return found


def read_head(bucket: str, name: str) -> tuple[Head, str | None]:
    """HEAD and its ETag (None before the first promotion)."""
    found = storage.get_json(f"{model_prefix(bucket, name)}/HEAD.json")
    return (Head(), None) if found is None else (Head(**found[0]), found[1])


def swap_head(bucket: str, name: str, champion: int, before: Head, etag: str | None, move: Move) -> Head:
    """Make `champion` the champion if HEAD is still `before`; `Conflict` when another one moved it."""
    head = Head(champion, before.champion, before.generation + 1, f"{before.generation + 1:04d}-{secrets.token_hex(4)}")
    uri = _record_uri(bucket, name, str(head.record))
    record = {
        **{key: value for key, value in asdict(head).items() if key != "record"},
        **asdict(move),
        "facts": dict(move.facts),
        "who": who(),
        "when_ms": int(time.time() * 1000),
        "before": before.record,
    }
    storage.put_json(uri, record, if_absent=True)
    reach("head.recorded")
    try:
        storage.put_json(f"{model_prefix(bucket, name)}/HEAD.json", asdict(head), if_match=etag, if_absent=etag is None)
    except Conflict:
        try:
            storage.delete(uri)
        except ServiceError as error:  # no chain holds it
            log.warning("the record of a move that lost a race stays: %s", error)
        raise
    reach("head.moved")
    return head


def history(bucket: str, name: str) -> list[Generation]:
    """Every move of HEAD, the newest first; without those from before moves were recorded."""
    found: list[Generation] = []
    record = read_head(bucket, name)[0].record
    while record is not None:
        stored = storage.get_json(_record_uri(bucket, name, record))
        if stored is None:
            raise ServiceError(f"{_record_uri(bucket, name, record)}: the record of a move of HEAD is missing")
        found.append(Generation(name=record, **stored[0]))
        record = found[-1].before
    return found


def _record_uri(bucket: str, name: str, record: str) -> str:
    return f"{model_prefix(bucket, name)}/generations/{record}.json"


def who() -> str:
    """The person, as this machine knows them: USER@HOST."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


def reserve_version(bucket: str, name: str, purpose: Mapping[str, Any]) -> int:
    """The next free version number, taken by a conditional put; racing promotions get different numbers.

    A version whose promotion died is left without a manifest, never a champion; who comes with the same `purpose` goes
    on in it.
    """
    version = max(versions(bucket, name), default=0) + 1
    while True:
        try:
            storage.put_json(f"{model_prefix(bucket, name, version)}/reserved.json", dict(purpose), if_absent=True)
            return version
        except Conflict:
            version += 1


def read_manifest(bucket: str, name: str, version: int) -> Manifest:
    """What a version is; `ServiceError` where it is missing, or says what no promotion has written."""
    address = f"{model_prefix(bucket, name, version)}/manifest.json"
    found = storage.get_json(address)
    if found is None:
        raise ServiceError(f"{address}: is missing")
    return parse_manifest(found[0], address)
