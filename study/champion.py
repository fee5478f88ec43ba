"""The champion of a model name: `models/NAME/HEAD.json`, swapped atomically; the one truth that MLflow mirrors.

HEAD holds `{champion, previous, generation}` (version numbers). A version's number is reserved by a conditional
put; its manifest, written last and once, makes it complete.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from infra import storage
from infra.errors import Conflict, ServiceError

__all__ = ["Head", "model_prefix", "read_head", "read_manifest", "reserve_version", "swap_head"]


@dataclass(frozen=True)
class Head:
    """Which version is the champion, which was it before, and how often that has changed."""

    champion: int | None = None
    previous: int | None = None
    generation: int = 0


def model_prefix(bucket: str, name: str, version: int | None = None) -> str:
    """URI of a model, or of one of its versions, without a closing slash."""
    base = f"s3://{bucket}/models/{name}"
    return base if version is None else f"{base}/{version:04d}"


def read_head(bucket: str, name: str) -> tuple[Head, str | None]:
    """HEAD and its ETag (None before the first promotion)."""
    found = storage.get_json(f"{model_prefix(bucket, name)}/HEAD.json")
    return (Head(), None) if found is None else (Head(**found[0]), found[1])


def swap_head(bucket: str, name: str, champion: int, before: Head, etag: str | None) -> Head:
    """Make `champion` the champion if HEAD is still `before`; `Conflict` when another promotion won."""
    head = Head(champion=champion, previous=before.champion, generation=before.generation + 1)
    storage.put_json(f"{model_prefix(bucket, name)}/HEAD.json", asdict(head), if_match=etag, if_absent=etag is None)
    return head


def reserve_version(bucket: str, name: str, study: str) -> int:
    """The next free version number, taken by a conditional put; racing promotions get different numbers.

    A version whose promotion died is left without a manifest: never a champion, and its number is not used again.
    """
    base = f"{model_prefix(bucket, name)}/"
    parts = [stored.uri.removeprefix(base).split("/")[0] for stored in storage.list_objects(base)]
    version = max((int(part) for part in parts if part.isdigit()), default=0) + 1
    while True:
        try:
            storage.put_json(f"{model_prefix(bucket, name, version)}/reserved.json", {"study": study}, if_absent=True)
            return version
        except Conflict:
            version += 1


def read_manifest(bucket: str, name: str, version: int) -> dict[str, Any]:
    """What a version is: weights with SHA-256, study, trial, accuracies."""
    found = storage.get_json(f"{model_prefix(bucket, name, version)}/manifest.json")
    if found is None:
        raise ServiceError(f"{model_prefix(bucket, name, version)}: its manifest is missing")
    return dict(found[0])
