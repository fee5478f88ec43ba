"""Where a trial's bytes are: its states (latest) and best weights under a prefix that one group of workers writes to.

s3://BUCKET/studies/STUDY-CREATED/trials/NUMBER/aTOKEN.GROUP/latest-EPOCH-BEST-SHA256.safetensors   its state;
                                                 inside an epoch latest-EPOCH+STEPS-BEST-SHA256.safetensors
s3://BUCKET/studies/STUDY-CREATED/trials/NUMBER/aTOKEN.GROUP/best-EPOCH-EPOCH-SHA256.safetensors    best weights
s3://BUCKET/studies/STUDY-CREATED/logs/...       what its drivers printed
s3://BUCKET/models/NAME/VERSION/...              promoted, never changed
s3://BUCKET/models/NAME/HEAD.json                which version is the champion
s3://BUCKET/scratch/STUDY-CREATED/...            claims of groups, deleted with the study's end
s3://BUCKET/teacher/KEY.safetensors              a frozen model's embeddings of a training set, for all studies; may be
                                                 deleted at any time

TOKEN is the driver's lease, GROUP counts the groups of workers that one driver started for the trial: Ray starts a new
group when it believes the old one dead, and a machine that is only cut off from Ray may still reach S3.

A name holds its epoch, the epoch whose weights are the best ones by then, and the first digits of its SHA-256: what was
replaced, cut short, altered or deleted is seen whatever the store knows of it. The last two states are kept, with the
best weights of each: of a damaged one, the one before is taken.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import Away, ChecksumMismatch, Conflict, Missing, ServiceError, Unsupported
from trainers.errors import Interrupted
from trainers.schema.records import At, Weights
from trainers.wiring import Restored

log = logging.getLogger("agft")

ROLES = ("latest", "best")


def study_prefix(bucket: str, slug: str) -> str:
    """URI of everything that a study keeps, without a closing slash. `slug`: its name and time of creation."""
    return f"s3://{bucket}/studies/{slug}"


def scratch_prefix(bucket: str, slug: str) -> str:
    """URI of what a study needs only while it runs, without a closing slash."""
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


@dataclass(frozen=True)
class _File:
    """An object of a trial, by what its name says; `digits`: the first of its SHA-256."""

    uri: str
    group: str  # its prefix: later ones sort after earlier ones
    role: str
    at: At
    digits: str

    def check(self, sha256: str | None) -> None:
        """`ChecksumMismatch` if that is not the content's SHA-256."""
        if sha256 is None or not sha256.startswith(self.digits):
            raise ChecksumMismatch(f"{self.uri}: has SHA-256 {sha256}, its name says {self.digits}...")


State = Mapping[str, _File]  # role -> file; without `best` where there are none
NAME = re.compile(
    r"(?P<group>.*)/(?P<role>latest|best)-(?P<epoch>\d+)(\+(?P<steps>\d+))?-(?P<best>\d+)-(?P<digits>[0-9a-f]{16})\.safetensors"
)


GROUP = re.compile(r".*/trials/(?P<number>\d+)/a\d+\.\d+")  # `group_prefix`


def kept_by(uri: str) -> tuple[int, str] | None:
    """(number of the trial, role) of what `keep_file` has stored; None for anything else."""
    file = NAME.fullmatch(uri)
    group = GROUP.fullmatch(file["group"]) if file else None
    return (int(group["number"]), file["role"]) if file and group else None


def _name(role: str, at: At, sha256: str) -> str:
    within = f"+{at.steps:07d}" if at.steps else ""
    return f"{role}-{at.epoch:05d}{within}-{at.best:05d}-{sha256[:16]}.safetensors"


def _states(prefix: str, *, but: str = "") -> list[State]:
    """What can be gone on from below `prefix` but not below `but`, the newest first: a state with its best
    weights, or without them where they are gone."""
    found = [NAME.fullmatch(stored.uri) for stored in storage.list_objects(f"{prefix}/")]
    files = [
        _File(m[0], m["group"], m["role"], At(int(m["epoch"]), int(m["best"]), int(m["steps"] or 0)), m["digits"])
        for m in found
        if m and m["group"] != but
    ]
    files.sort(key=lambda each: (each.group, each.at.epoch, each.at.steps))
    states: list[State] = []
    for latest in (each for each in reversed(files) if each.role == "latest"):
        wanted = (latest.group, "best", latest.at.best)
        best = [each for each in files if (each.group, each.role, each.at.epoch) == wanted]
        states.append({"latest": latest} | ({"best": best[-1]} if best else {}))
    return states


def keep_file(attempt: str, group: int, path: Path, role: str, at: At, stored: int) -> Weights:
    """Store a file where only this group of workers writes; one PUT, so the object is always whole.

    Of this group's older ones stay what belongs to the state before, and to epoch `stored`, the last one on record.
    """
    assert role in ROLES, role
    prefix, sha256 = group_prefix(attempt, group), storage.hash_file(path)
    kept = storage.put_file(path, f"{prefix}/{_name(role, at, sha256)}", sha256=sha256)
    if role == "latest":
        try:
            _delete_older(prefix, stored)
        except ServiceError as error:  # it is deleted with the trial's end
            log.warning("%s: older checkpoints could not be deleted: %s", prefix, error)
    return Weights(uri=kept.uri, sha256=sha256, bytes=kept.size)


def _delete_older(prefix: str, stored: int) -> None:
    states = _states(prefix)
    ended = [state for state in states if not state["latest"].at.steps]
    on_record = next((state for state in ended if state["latest"].at.epoch <= stored), {})
    needed = {each.uri for state in (*states[:2], on_record) for each in state.values()}
    for old in {each.uri for state in states for each in state.values()} - needed:
        storage.delete(old)


def begin_group(
    place: tuple[str, str, int, int], known: Mapping[str, Weights], say: Callable[[str], None],
    repeat: Callable[..., Any] = lambda step, *given: step(*given),
) -> int:  # fmt: skip
    """Claim a prefix for this group of workers, and copy to it what the trial goes on from; the group's number.

    Called by one process of a group. `place`: bucket, study, trial, token. `known`: role -> what the study has on
    record. `repeat` calls a step again while S3 is away: two steps, so that who waits in the second takes no other
    number.
    """
    group: int = repeat(claim_group, *place)
    repeat(inherit, *place, group, known, say)
    return group


def claim_group(bucket: str, slug: str, number: int, token: int) -> int:
    """Take the next group's prefix, which nobody else writes to."""
    group = 1
    while not _is_first(f"{scratch_prefix(bucket, slug)}/claims/{number}/a{token:06d}.{group:03d}"):
        group += 1
    return group


def inherit(
    bucket: str, slug: str, number: int, token: int, group: int, known: Mapping[str, Weights],
    say: Callable[[str], None],
) -> None:  # fmt: skip
    """Copy to the prefix of a group what the trial goes on from, before all of its processes `fetch_state`.

    `known`: role -> what the study has on record, used where the trial's prefix holds nothing: an imported study's
    files lie under the prefix of the study that it was exported from. `say` is told of a state that is not whole any
    more; the one before it is taken.
    """
    trial, own = trial_prefix(bucket, slug, number), group_prefix(attempt_prefix(bucket, slug, number, token), group)
    if any(_is_whole(state) for state in _states(own)):
        return  # the store ignores conditions: this is the place of the group before, and its state is the newest
    copied: State = {}
    damaged: list[State] = []
    # Until nothing changes: a group that Ray gave up may be writing.
    while (found := next((each for each in _states(trial, but=own) if each not in damaged), {})) != copied:
        try:
            _copy(found, own)
            copied = found
        except (ChecksumMismatch, Missing) as error:
            damaged.append(found)
            say(f"a damaged checkpoint is passed over, and the one before it is taken: {error}")
    if not copied and "latest" in known:
        try:
            _copy({role: _File(w.uri, "", role, At(0, 0), w.sha256[:16]) for role, w in known.items()}, own)
        except (ChecksumMismatch, Missing) as error:
            say(f"no checkpoint is left to go on from, so the trial starts anew: {error}")
            return
        copied = {role: _File(w.uri, "", role, At(0, 0), w.sha256[:16]) for role, w in known.items()}
    if copied:
        _await_listing(own)


def _is_whole(state: State) -> bool:
    """What is not is deleted: whoever fetches would find it the newest."""
    try:
        _with_best(state)
        for file in state.values():
            storage.read_whole(lambda file=file: file.check(storage.hash_object(file.uri)))  # type: ignore[misc]
    except (ChecksumMismatch, Missing) as error:
        log.warning("deleted: %s", error)
        storage.delete(state["latest"].uri)
        return False
    return True


def _with_best(state: State) -> None:
    if state["latest"].at.best and "best" not in state:
        raise Missing(f"{state['latest'].uri}: the best weights beside it are gone")


def _await_listing(own: str) -> None:
    """`Away` while a listing lacks what was just copied: who fetches by it would start anew."""
    for pause in storage.REREAD_SECONDS:
        if _states(own):
            return
        time.sleep(pause)
    if not _states(own):
        raise Away(f"{own}: the store's listing lacks what was just put there")


def _copy(state: State, own: str) -> None:
    """Below the prefix `own`, the state last; `ChecksumMismatch` or `Missing` if a part of it is not whole."""
    roles = [role for role in ("best", "latest") if role in state]
    _with_best(state)
    for role in roles:
        file = state[role]
        copy = f"{own}/{_name(role, file.at, file.digits)}"
        try:
            file.check(storage.copy(file.uri, copy).sha256)
        except ChecksumMismatch:
            storage.delete(copy)
            raise


def _is_first(uri: str) -> bool:
    try:
        storage.put_bytes(uri, b"claimed", if_absent=True)
    except Conflict:
        return False
    except Unsupported:  # a store without conditions: the groups of a trial seldom start together
        if storage.head(uri) is not None:
            return False
        storage.put_bytes(uri, b"claimed")
    return True


def fetch_state(attempt: str, group: int, workdir: Path) -> Restored | None:
    """The state that `inherit` found, checked against its SHA-256, with the best weights; None for a new trial.

    `Interrupted` where one is there and cannot be read: it was whole a moment ago, so another group may read it.
    """
    path, wrong = workdir / "resume.safetensors", ""
    for state in _states(group_prefix(attempt, group)):
        try:
            _with_best(state)
            best = storage.head(state["best"].uri) if "best" in state else None
            if best is None and "best" in state:
                raise Missing(f"{state['best'].uri}: no such object")
            latest = storage.get_file(state["latest"].uri, path, sha256=state["latest"].digits)
        except (ChecksumMismatch, Missing) as error:
            log.warning("%s", error)
            wrong = wrong or str(error)
            continue
        return Restored(state=path, latest=_weights(latest), best=None if best is None else _weights(best))
    if wrong:
        raise Interrupted(f"no state can be read whole: {wrong}")
    return None


def _weights(stored: storage.StoredObject) -> Weights:
    """A store that forgets metadata is read for the SHA-256."""
    sha256 = stored.sha256 or storage.hash_object(stored.uri)
    return Weights(uri=stored.uri, sha256=sha256, bytes=stored.size)


def delete_superseded(trial: str, kept: Mapping[str, str]) -> None:
    """Of a trial that has ended, keep one object a role: what is on record (`kept`: role -> URI), else the newest."""
    newest = next((state for state in _states(trial)), {})
    keep = {**{role: file.uri for role, file in newest.items()}, **kept}.values()
    for stored in storage.list_objects(f"{trial}/"):
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
        except Unsupported:  # a store without conditions: who else writes this file writes the same
            storage.put_file(path, uri)
