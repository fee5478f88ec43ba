"""`agft gc`: what nothing needs any more, found first, deleted only when that is asked for.

Looks at a study's checkpoints only when the study is named, at abandoned versions, at studies' folders whose study this
database does not have (reported, deleted only on request: another database or an archive may know them), and at this
machine's cache of fetched weights.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import sqlalchemy as sa

from infra import storage
from study.artifacts.checkpoints import kept_by, study_prefix
from study.console import Say
from study.errors import UserError
from study.models.catalog import model_names
from study.models.head import model_prefix, read_manifest
from study.results.ranking import pareto_front, ranked
from study.store import tables
from study.store.lease import owner_identity
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore, study_names
from trainers.files import FileLock, cache_folder

# Which checkpoints are kept: rules as pure functions over stored rows, and what else points at a checkpoint.
#
# For ever: everything under a promoted version, the file that a version was copied from, everything of a trial that has
# not finished, and every address that another study names. Of a finished trial the best weights are kept, and its state
# to resume from is not needed any more; with `top`, only the best `top` trials and the Pareto front keep their weights.


@dataclass(frozen=True)
class Doomed:
    """An object (or a folder of the local cache) that no rule keeps, and why."""

    place: str
    bytes: int
    reason: str


def addresses(value: Any) -> set[str]:
    """Every s3:// address anywhere in a JSON value, without a closing slash."""
    if isinstance(value, str):
        return {value.rstrip("/")} if value.startswith("s3://") else set()
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return set().union(*(addresses(each) for each in value)) if value else set()
    return set()


def spent(
    study: StudyRow,
    trials: Sequence[TrialRow],
    objects: Iterable[tuple[str, int]],
    pointed: set[str],
    *,
    top: int | None,
) -> list[Doomed]:
    """What of a study's `objects` (address, bytes) goes. `pointed`: addresses that something else refers to."""
    rows = {trial.number: trial for trial in trials}
    best = _kept(study, trials, top)
    current = {uri for trial in trials for uri in trial.kept.values()}
    found = []
    for uri, size in objects:
        named = kept_by(uri)
        if named is None or is_pointed(uri, pointed):
            continue
        number, role = named
        trial = rows.get(number)
        if trial is None or not trial.finished:
            continue  # of a trial that the database does not know, or that may go on
        if uri not in current:
            found.append(Doomed(uri, size, "of an earlier epoch or attempt"))
        elif role == "latest":
            found.append(Doomed(uri, size, f"state of a trial that is {trial.state}"))
        elif number not in best:
            found.append(Doomed(uri, size, f"weights of a trial that is not among the best {top}"))
    return found


def _kept(study: StudyRow, trials: Sequence[TrialRow], top: int | None) -> set[int]:
    """Trials that keep their best weights."""
    if top is None or study.goal is None:
        return {trial.number for trial in trials}
    order = ranked(trials, study.goal)
    return {trial.number for trial in [*order[:top], *pareto_front(trials, study.goal.names)]}


def is_pointed(uri: str, pointed: set[str]) -> bool:
    """Is the object, or a folder that it is in, referred to?"""
    path = PurePosixPath(uri.removeprefix("s3://"))
    return any(f"s3://{each}" in pointed for each in (path, *path.parents))


ABANDONED_SECONDS = 86400.0
UNUSED_SECONDS = 30 * 86400.0
CACHED = "weights"  # of the cache: the only part that is fetched again by itself
MANIFEST, RESERVED = "manifest.json", "reserved.json"


@dataclass
class Garbage:
    """What would go, by kind, and what is only reported."""

    study: list[Doomed] = field(default_factory=list)
    versions: list[Doomed] = field(default_factory=list)
    cache: list[Doomed] = field(default_factory=list)
    strangers: list[Doomed] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def doomed(self, *, strangers: bool) -> list[Doomed]:
        """Everything that a deletion takes."""
        return [*self.study, *self.versions, *self.cache, *(self.strangers if strangers else ())]


def look(url: str, bucket: str, name: str | None, *, top: int | None) -> Garbage:
    """Find what goes; changes nothing. `name`: the study whose checkpoints are looked at; `UserError` if unknown."""
    stores = [StudyStore(url, each) for each in study_names(url)]
    studies = {store.name: store.load() for store in stores}
    found = Garbage()
    if name is not None:
        _of_study(StudyStore(url, name), bucket, _pointed(bucket, stores, studies, but=name), top, found)
    pointed = _pointed(bucket, stores, studies, but=None)
    found.versions = list(_abandoned(bucket, pointed))
    found.strangers = list(_strangers(bucket, {study.slug for study in studies.values()}, pointed))
    found.cache = list(_unused_cache())
    return found


def _pointed(bucket: str, stores: Sequence[StudyStore], studies: dict[str, StudyRow], *, but: str | None) -> set[str]:
    """Addresses that versions and studies refer to; of the study `but` only what its specification names.

    Its trials' own files are what its rules decide about.
    """
    found: set[str] = set()
    for model, numbers in model_names(bucket).items():
        for number in numbers:
            manifest = read_manifest(bucket, model, number)
            found |= {model_prefix(bucket, model, number), *addresses(manifest.record())}
    for store in stores:
        found |= addresses(studies[store.name].spec.model_dump(mode="json"))
        for trial in store.trials():
            found |= addresses(trial.config)
            if store.name != but:
                found |= addresses(trial.kept)
    return found


def _of_study(store: StudyStore, bucket: str, pointed: set[str], top: int | None, found: Garbage) -> None:
    study, trials = store.load(), store.trials()
    if _being_promoted(store):
        found.notes.append(f"{study.name}: a promotion has not ended; its checkpoints are left alone")
        return
    objects = [(each.uri, each.size) for each in storage.list_objects(study_prefix(bucket, study.slug))]
    found.study = spent(study, trials, objects, pointed, top=top)
    unfinished = sum(not trial.finished for trial in trials)
    if unfinished:
        found.notes.append(f"{study.name}: {unfinished} unfinished trials keep everything")


def _being_promoted(store: StudyStore) -> bool:
    """Has a promotion begun within a day and not said how it ended? (One that was killed never says.)"""
    rows, clock = tables.promotions.c, (time.time() - ABANDONED_SECONDS) * 1000
    begun = sa.select(rows.id).where(rows.study == store.name, rows.state == "started", rows.started_ms > clock)
    with store.engine.connect() as connection:
        return connection.execute(begun).first() is not None


def _abandoned(bucket: str, pointed: set[str]) -> Iterable[Doomed]:
    """Files of versions that were begun and never finished, a day after the last of them was written.

    The reservation itself stays: its few bytes keep the number from being given to another model.
    """
    base = f"s3://{bucket}/models/"
    by_version: dict[str, list[storage.StoredObject]] = {}
    for stored in storage.list_objects(base):
        name, _, rest = stored.uri.removeprefix(base).partition("/")
        number, slash, _ = rest.partition("/")
        if slash and number.isdigit():
            by_version.setdefault(f"{base}{name}/{number}", []).append(stored)
    for prefix, files in by_version.items():
        newest = max((each.modified for each in files if each.modified), default=None)
        whole = any(each.uri == f"{prefix}/{MANIFEST}" for each in files)
        if whole or newest is None or (datetime.now(UTC) - newest).total_seconds() < ABANDONED_SECONDS:
            continue
        for each in files:
            if each.uri != f"{prefix}/{RESERVED}" and not is_pointed(each.uri, pointed):
                yield Doomed(each.uri, each.size, "of a version that was never finished")


def _strangers(bucket: str, slugs: set[str], pointed: set[str]) -> Iterable[Doomed]:
    """Objects of studies that this database does not have and nothing here refers to."""
    base = f"s3://{bucket}/studies/"
    for stored in storage.list_objects(base):
        slug = stored.uri.removeprefix(base).partition("/")[0]
        if slug not in slugs and not is_pointed(stored.uri, pointed):
            yield Doomed(stored.uri, stored.size, f"of {slug}, which this database does not have")


def _unused_cache() -> Iterable[Doomed]:
    """Fetched weights that nobody has read for 30 days."""
    folder = cache_folder() / CACHED
    for entry in sorted(folder.iterdir()) if folder.is_dir() else ():
        files = [path for path in entry.rglob("*") if path.is_file()] if entry.is_dir() else []
        read = max((max(path.stat().st_atime, path.stat().st_mtime) for path in files), default=0.0)
        if files and time.time() - read > UNUSED_SECONDS:
            yield Doomed(str(entry), sum(path.stat().st_size for path in files), "not read for 30 days")


def delete(url: str, bucket: str, name: str | None, *, top: int | None, strangers: bool, say: Say) -> list[Doomed]:
    """Look again and delete what is found; what went.

    The study's lease is held meanwhile, so that no driver begins or resumes a trial; `UserError` if one drives.
    """
    if name is None:
        return _delete(look(url, bucket, None, top=top).doomed(strangers=strangers), say)
    store = StudyStore(url, name)
    study = store.load()
    if study.lease_seconds > 0:
        raise UserError(f"study {name!r} is running; pause it first: agft pause {name}")
    token = store.acquire(owner_identity(), state=study.state)
    try:
        return _delete(look(url, bucket, name, top=top).doomed(strangers=strangers), say)
    finally:
        store.release(token, study.state, study.message)


def _delete(doomed: Sequence[Doomed], say: Say) -> list[Doomed]:
    gone = []
    for each in doomed:
        if each.place.startswith("s3://"):
            storage.delete(each.place)
        elif not _delete_cached(Path(each.place)):
            say(f"in use, left: {each.place}")
            continue
        gone.append(each)
    return gone


def _delete_cached(folder: Path) -> bool:
    """Delete an entry of the cache unless another process is filling it."""
    locks = [FileLock(path) for path in folder.glob(".*.lock")]
    try:
        if not all(lock.acquire() for lock in locks):
            return False
        shutil.rmtree(folder)
        return True
    finally:
        for lock in locks:
            lock.release()


# What `agft gc` says: by kind and reason, how many, how many bytes, and what to do next.

LISTED = 20  # of a kind; all of them are in --json
KINDS = {
    "study": "checkpoints",
    "versions": "unfinished versions",
    "cache": "local cache",
    "strangers": "other studies",
}


def as_record(found: Garbage, gone: Sequence[Doomed] | None) -> dict[str, Any]:
    """For machines: every place with its bytes and the reason, by kind; `deleted` is null in a dry run."""
    kinds = {kind: [vars(each) for each in getattr(found, kind)] for kind in KINDS}
    deleted = None if gone is None else {"objects": len(gone), "bytes": total(gone)}
    return {**kinds, "notes": found.notes, "deleted": deleted}


def gc_lines(found: Garbage, gone: Sequence[Doomed] | None, *, study: str | None, unknown: bool) -> list[str]:
    """For people."""
    lines = []
    for kind, title in KINDS.items():
        doomed = getattr(found, kind)
        if not doomed:
            continue
        kept = ", reported only (--unknown deletes them)" if kind == "strangers" and not unknown else ""
        lines.append(f"{title}: {len(doomed)}, {size(total(doomed))}{kept}")
        lines += [f"  {size(each.bytes):>9}  {each.place}  ({each.reason})" for each in doomed[:LISTED]]
        lines += [f"  ... and {len(doomed) - LISTED} more; --json lists all"] if len(doomed) > LISTED else []
    lines += found.notes
    if study is None:
        lines.append("checkpoints of a study are looked at only when it is named: agft gc STUDY")
    doomed = found.doomed(strangers=unknown)
    if gone is not None:
        return [*lines, f"deleted {len(gone)} of {len(doomed)}, {size(total(gone))}"]
    if not doomed:
        return [*lines, "nothing to delete"]
    return [*lines, f"dry run: nothing was deleted; --yes deletes {len(doomed)}, {size(total(doomed))}"]


def total(doomed: Sequence[Doomed]) -> int:
    """Bytes."""
    return sum(each.bytes for each in doomed)


def size(count: float) -> str:
    """`4.6 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("unreachable")
