"""The promoted models as S3 has them, which is the truth: names, versions, and what a person's NAME@... means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from infra import storage
from study.errors import UserError
from study.models.head import Head, model_prefix, read_head, read_manifest
from trainers.errors import nearest

ALIASES = ("champion", "previous")
REFERENCE = re.compile(r"^(?:models:/)?(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:[@/](?P<which>[A-Za-z0-9]+))?$")
UNMODIFIED = "unmodified CLIP"


@dataclass(frozen=True)
class Version:
    """One promoted version: its number, where it is, and its manifest."""

    name: str
    number: int
    prefix: str
    manifest: Mapping[str, Any]


def model_names(bucket: str) -> dict[str, list[int]]:
    """Every model name with its complete versions, by number; names that have only unfinished ones are there, too."""
    base = f"s3://{bucket}/models/"
    found: dict[str, list[int]] = {}
    for stored in storage.list_objects(base):
        name, *rest = stored.uri.removeprefix(base).split("/")
        if rest:
            numbers = found.setdefault(name, [])
            if len(rest) == 2 and rest[0].isdigit() and rest[1] == "manifest.json":
                numbers.append(int(rest[0]))
    return {name: sorted(numbers) for name, numbers in sorted(found.items())}


def versions_of(bucket: str, name: str, numbers: list[int]) -> list[Version]:
    """Read the manifests."""
    return [Version(name, n, model_prefix(bucket, name, n), read_manifest(bucket, name, n)) for n in numbers]


def read_version(bucket: str, reference: str) -> Version:
    """What `NAME`, `NAME@champion`, `NAME@previous` or `NAME@3` means; `UserError` with the nearest that there is."""
    match = REFERENCE.match(reference)
    if match is None:
        raise UserError(f"{reference!r}: expected NAME, NAME@champion, NAME@previous or NAME@NUMBER")
    name, which = match["name"], match["which"] or "champion"
    known = model_names(bucket)
    number = _number(bucket, known_name(name, known), which, known[name])
    return versions_of(bucket, name, [number])[0]


def known_name(name: str, known: Mapping[str, list[int]]) -> str:
    """`name`, if it is one of `known`; else `UserError` with the nearest."""
    if name not in known:
        close = nearest(name, known, count=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"no model {name!r}; {hint}known: {', '.join(known) or 'none yet'}")
    return name


def _number(bucket: str, name: str, which: str, numbers: list[int]) -> int:
    shown = ", ".join(map(str, numbers)) or "none that is complete"
    if which.isdigit():
        if int(which) not in numbers:
            raise UserError(f"model {name!r} has no version {int(which)}; versions: {shown}")
        return int(which)
    if which not in ALIASES:
        close = nearest(which, ALIASES, count=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"{name}@{which}: {hint}known: champion, previous, or a version: {shown}")
    head: Head = read_head(bucket, name)[0]
    found = head.champion if which == "champion" else head.previous
    if found is None:
        raise UserError(f"model {name!r} has no {which} yet; versions: {shown}")
    return found


def version_key(prefix: str, manifest: Mapping[str, Any]) -> str:
    """What identifies a version in MLflow's registry: where it is, and its weights."""
    return f"{prefix}#{manifest['weights']['sha256']}"


def forced_reason(manifest: Mapping[str, Any]) -> str | None:
    """Why the version was promoted against its gates; None where it was not."""
    forced = manifest.get("forced")
    if not forced:
        return None
    if isinstance(forced, Mapping):
        forced = forced.get("reason") or "; ".join(f"{key}: {value}" for key, value in forced.items())
    return "no reason was recorded" if forced is True else str(forced)


def failed_gates(manifest: Mapping[str, Any]) -> list[str] | None:
    """Names of the gates that the version failed; None if the manifest knows none (of the first promotions)."""
    gates = manifest.get("gates")
    return None if gates is None else [gate["name"] for gate in gates if gate_verdict(gate) == "failed"]


def gate_verdict(gate: Mapping[str, Any]) -> str:
    """passed, failed or not applicable."""
    return str(gate.get("verdict") or ("passed" if gate.get("passed", True) else "failed"))


def created(manifest: Mapping[str, Any]) -> float | None:
    """Seconds since 1970 at which the version was promoted, if its manifest says so."""
    if manifest.get("created_ms"):
        return float(manifest["created_ms"]) / 1000
    return float(manifest["created"]) if manifest.get("created") else None


def own_result(manifest: Mapping[str, Any], role: str) -> Mapping[str, Any] | None:
    """The version's own measurement on `role` (confirm or final), or None."""
    found = manifest.get(role) or {}
    own: Mapping[str, Any] | None = found.get(f"trial {manifest.get('trial')}")
    return own


def unmodified_result(manifest: Mapping[str, Any], role: str) -> Mapping[str, Any] | None:
    """The unmodified CLIP's measurement beside it, or None."""
    clip: Mapping[str, Any] | None = (manifest.get(role) or {}).get(UNMODIFIED)
    return clip
