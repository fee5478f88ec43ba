"""The champion moved back to a version that was it, or is complete: as a new generation, with a record."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

from infra.errors import Conflict, ServiceError
from study.errors import UserError
from study.models.head import Move, history, model_names, model_prefix, read_head, read_manifest, swap_head, versions
from study.models.registry import followed
from study.models.ship import verify
from trainers.errors import nearest


@dataclass(frozen=True)
class Rollback:
    """What was done. `before`: the champion until then; `registry`: what is wrong with MLflow's view of it."""

    model: str
    champion: int
    before: int
    generation: int
    uri: str
    registry: str

    @property
    def moved(self) -> bool:
        return self.champion != self.before

    @property
    def exit_code(self) -> int:
        """1 when MLflow does not know yet."""
        return int(bool(self.registry))


def chosen_name(bucket: str, name: str | None) -> str:
    """The model that is meant; of several, one must be named."""
    known = model_names(bucket)
    if name is None and len(known) == 1:
        return known[0]
    if name is None:
        raise UserError(f"NAME: which model? champions of: {', '.join(known) or 'none yet'}")
    if name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"NAME: {name!r} has no champion; {hint}champions of: {', '.join(known) or 'none yet'}")
    return name


def roll_back(bucket: str, name: str, *, to: int | None, reason: str, tracking_uri: str) -> Rollback:
    """Make version `to` (None: the previous champion) the champion. Its weights are read back first.

    To the champion itself it moves nothing. Either way MLflow's aliases are repaired. Raises `UserError` for a version
    that is none, `ServiceError` when HEAD was moved by somebody else at the same time.
    """
    head, etag = read_head(bucket, name)
    assert head.champion is not None, "a name that is known has a champion"
    target = head.previous if to is None else to
    if target is None:
        raise UserError(f"{name}: version {head.champion} is its first champion; there is none to go back to")
    complete = [number for number, files in versions(bucket, name).items() if "manifest.json" in files]
    if target not in complete:
        shown = ", ".join(map(str, sorted(complete)))
        raise UserError(f"--to {target}: {name} has no complete version {target}; versions: {shown}")
    generation = head.generation
    if target != head.champion:
        verify(read_manifest(bucket, name, target).weights)
        left = read_manifest(bucket, name, head.champion).weights.sha256
        move = Move("rollback", reason or "no reason given", {"from": head.champion, "from_sha256": left})
        try:
            generation = swap_head(bucket, name, target, head, etag, move).generation
        except Conflict:
            raise ServiceError(
                f"{name}: somebody moved the champion at the same time; look at it and roll back again if need be"
            ) from None
    registry = followed(bucket, name, tracking_uri)
    return Rollback(name, target, head.champion, generation, model_prefix(bucket, name, target), registry)


def taken_back(bucket: str, name: str, sha256: str) -> str | None:
    """When and why a champion with these weights was last rolled back from, if it was not made champion again since."""
    for move in history(bucket, name):
        if move.facts.get("weights_sha256") == sha256:
            return None
        if move.action == "rollback" and move.facts.get("from_sha256") == sha256:
            when = datetime.fromtimestamp(move.when_ms / 1000, UTC)
            return f"generation {move.generation} took it back on {when:%Y-%m-%d}: {move.why}"
    return None
