"""A second person between a decision and the champion: what waits for approval, and who gave it.

`models/NAME/approvals/0003.json` holds what was decided about version 3 and by whom; the version itself is complete.
Approving it makes the move of HEAD that the promotion would have made, with both people in its record.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from infra import storage
from infra.errors import Conflict, ServiceError
from study.errors import UserError
from study.models.head import Head, Move, model_prefix, read_head, read_manifest, swap_head, who
from study.models.registry import followed
from study.models.ship import verify


@dataclass(frozen=True)
class Held:
    """A decision that waits: the move it is, by whom it was decided, and the champion that it was compared with."""

    version: int
    champion_then: int | None
    decided_by: str
    when_ms: int
    why: str
    facts: Mapping[str, Any]


def hold(bucket: str, name: str, version: int, champion_then: int | None, move: Move) -> Held:
    """Keep a decision until somebody else approves of it; the same version again replaces it."""
    held = Held(version, champion_then, who(), int(time.time() * 1000), move.why, dict(move.facts))
    storage.put_json(_uri(bucket, name, version), asdict(held))
    return held


def approve(bucket: str, name: str, version: int, *, reason: str, tracking_uri: str) -> tuple[Head, str]:
    """Make a held version the champion; HEAD, and what is wrong with MLflow's view of it ("" if nothing).

    `UserError`: nothing waits under that number, the same person decided, or another champion came in between, with
    which it was not compared. `ServiceError`: HEAD moved at this moment, or the version's weights are not its own.
    """
    found = storage.get_json(_uri(bucket, name, version))
    if found is None:
        raise UserError(f"{name} version {version}: nothing waits for approval; waiting: {_waiting(bucket, name)}")
    held, me = Held(**found[0]), who()
    if me.partition("@")[0] == held.decided_by.partition("@")[0]:
        raise UserError(f"{name} version {version}: {held.decided_by} decided it; another person has to approve")
    head, etag = read_head(bucket, name)
    if head.champion != held.champion_then:
        raise UserError(
            f"{name} version {version}: was compared with champion {held.champion_then or 'none'}, and the champion is "
            f"version {head.champion} by now; promote {held.facts.get('study', 'the study')!r} again"
        )
    verify(read_manifest(bucket, name, version).weights)
    facts = {**held.facts, "decided_by": held.decided_by, "decided_ms": held.when_ms, "approval": reason}
    try:
        moved = swap_head(bucket, name, version, head, etag, Move("promotion", held.why, facts))
    except Conflict:
        raise ServiceError(
            f"{name}: somebody moved the champion at the same time; look at it and approve again"
        ) from None
    storage.delete(_uri(bucket, name, version))
    return moved, followed(bucket, name, tracking_uri)


def _waiting(bucket: str, name: str) -> str:
    base = f"{model_prefix(bucket, name)}/approvals/"
    found = [str(int(stored.uri.removeprefix(base).partition(".")[0])) for stored in storage.list_objects(base)]
    return ", ".join(found) or "none"


def _uri(bucket: str, name: str, version: int) -> str:
    return f"{model_prefix(bucket, name)}/approvals/{version:04d}.json"
