"""Embeddings computed once: by one of several processes, split over its ranks, kept on disk and in the artifact store.

No fault of a file, a disk or the store fails a run. Ranks go in lockstep: none waits for a lock while the others wait
for it in a collective operation.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from trainers import distributed
from trainers.data import ImageSet
from trainers.evaluation.scorer import usual_batch
from trainers.files import TEMPORARY, FileLock
from trainers.life import Left, asked
from trainers.model.robust import RobustCLIP
from trainers.teacher.rows import Damaged, Writer, embedding_rows, embedding_width, largest_error, read_embeddings

TOLERANCE = 1e-3  # relative L2 distance of a row that is computed again; rounding on other hardware is far below
PASSES = 2  # a file that is still not good after having been computed this often is given up for memory

SERVED, IN_MEMORY, OWNER, WAITING = range(4)  # what a rank is in a round

logger = logging.getLogger(__name__)


class SharedFiles(Protocol):
    """The artifact store as training sees it. Whatever these raise is a warning here, never an error."""

    def get(self, name: str, path: Path) -> bool:
        """Write what is stored under `name` to `path`; False if nothing is."""
        ...

    def put(self, path: Path, name: str, *, replace: bool = False) -> None:
        """Store a file; without `replace`, what is there already stays."""
        ...


def cached_embeddings(
    model: RobustCLIP,
    image_set: ImageSet,
    parts: Mapping[str, Any],
    path: Path,
    *,
    device: torch.device,
    shared: SharedFiles | None,
    shared_name: str,
) -> Tensor:
    """The embeddings that `parts` describe, from `path`, from the store, or computed; on every rank together.

    Rounds in lockstep until every rank is served. In a round the ranks that lack the file try its lock; one rank a
    disk gets it, and fetches the file or makes room for it. If then every rank without the file owns a lock, or sees
    that an owner of this group is on its disk, or has no disk, all compute together. Otherwise another process is at
    work: everyone lets go (so that two groups with a lock each never wait for each other), sleeps, and looks again.
    """
    rank = _Rank(model, image_set, parts, path, device, shared, shared_name)
    passes, settled, waited = 0, -1, False
    while True:
        rank.look(last=passes >= PASSES)
        if not distributed.any_rank(rank.found is None):
            break
        try:
            rank.prepare()
            distributed.barrier()  # so that every owner's number is in its lock
            states, tokens = distributed.gather_rows(torch.tensor([rank.standing()])).unbind(1)
            if set(tokens[states == WAITING].tolist()) <= set(tokens[states == OWNER].tolist()):
                if bool((states != SERVED).any()):
                    rank.compute()
                    passes += 1
                continue
        finally:
            rank.leave()
        _leave_if_asked()
        before, settled = settled, int((states <= IN_MEMORY).sum())
        if settled == before:
            if not waited and distributed.rank() == 0:
                logger.warning("another process makes the teacher's embeddings %s; waiting for it", path)
            waited = True
            # The system's random numbers, since no seeded ones may move; of two groups one must be faster.
            time.sleep(secrets.SystemRandom().uniform(0.1, 0.5))
    damaged = distributed.any_rank(rank.shared_is_damaged)
    if distributed.rank() == 0:
        rank.share(replace=damaged)
    assert rank.found is not None
    return rank.found


def _leave_if_asked() -> None:
    """All ranks together, with what is sure of an unfinished file kept on the disk."""
    if distributed.any_rank(asked()):
        raise Left


@dataclass(eq=False)
class _Rank:
    """What one process has, owns and writes."""

    model: RobustCLIP
    image_set: ImageSet
    parts: Mapping[str, Any]
    path: Path
    device: torch.device
    shared: SharedFiles | None
    shared_name: str
    found: Tensor | None = None
    writer: Writer | None = None
    has_disk: bool = True
    shared_is_damaged: bool = False

    def __post_init__(self) -> None:
        self.lock = FileLock(self.path.with_name("lock"))

    def look(self, *, last: bool = False) -> str | None:
        """Take the file on disk if it is good; else return what is wrong with it. `last`: or do without the disk."""
        reason = None
        if self.found is None and self.has_disk:
            try:
                self.found = self._verified(self.path)
            except Damaged as error:
                reason = str(error)
            if self.found is None and last:
                self._do_without_disk(reason or "the file is gone again")
        return reason

    def _verified(self, path: Path) -> Tensor | None:
        """The file's embeddings, if manifest, size and SHA-256 are right and the live model agrees on a few rows."""
        found = read_embeddings(path, self.parts)
        if found is None:
            return None
        if len(found) != len(self.image_set):
            raise Damaged(f"it has {len(found)} rows for {len(self.image_set)} images")
        error = largest_error(found, self.model, self.image_set, self.device)
        if not error <= TOLERANCE:
            raise Damaged(f"rows computed again differ by {error:.2g} (relative; the limit is {TOLERANCE:g})")
        return found

    def prepare(self) -> None:
        """Without the file: try to become the owner of its lock, and then to fetch it or to make room for it."""
        if self.found is not None or not self.has_disk:
            return
        name = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        manifest = {**self.parts, "made_with": {"torch": torch.__version__, "device": name}}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if not self.lock.acquire():
                return
            reason = self.look()  # somebody may have been faster
            if self.found is None:
                self._clear(reason)
                self._fetch()
            if self.found is None:
                width = embedding_width(self.model, self.image_set, self.device)
                batch = usual_batch(self.device)
                self.writer = Writer(self.path, (len(self.image_set), width), manifest, batch=batch)
        except OSError as error:
            self._do_without_disk(str(error))
        if self.writer is None:
            self.lock.release()

    def _clear(self, reason: str | None) -> None:
        """Remove a bad file and what killed processes left; only the lock's owner writes here."""
        if reason is not None:
            logger.warning("the teacher's embeddings in %s are computed again: %s", self.path, reason)
        for item in self.path.parent.iterdir():
            if item.is_dir():
                shutil.rmtree(item)
            elif item != self.lock.path and not item.name.startswith(f"{self.path.name}.part"):
                item.unlink()

    def _fetch(self) -> None:
        """From the store."""
        if self.shared is None:
            return
        temporary = self.path.with_name(f"fetched.{secrets.token_hex(4)}{TEMPORARY}")
        try:
            if self.shared.get(self.shared_name, temporary):
                self.found = self._verified(temporary)
                temporary.replace(self.path)
        except Damaged as error:
            self.shared_is_damaged = True
            logger.warning("the store's %s is computed again and replaced: %s", self.shared_name, error)
        except Exception as error:  # the store's own, which this package does not know
            self.shared = None  # one wait for it is enough
            logger.warning("the teacher's embeddings are not looked for in the store: %s", error)
        finally:
            temporary.unlink(missing_ok=True)

    def _do_without_disk(self, reason: str) -> None:
        logger.warning("the teacher's embeddings are held in memory, not in %s: %s", self.path, reason)
        self.has_disk = False

    def standing(self) -> tuple[int, int]:
        """(state, number of the lock that matters to this rank)."""
        if self.found is not None:
            return SERVED, 0
        if not self.has_disk:
            return IN_MEMORY, 0
        return (OWNER, self.lock.token) if self.lock.held else (WAITING, self.lock.owner())

    def compute(self) -> None:
        """All ranks compute; owners write the file, and who has no disk keeps the rows."""
        kept: Tensor | None = None
        in_memory = not self.has_disk
        # Of what killed passes left on the owners' disks, what all of them have. A rank that only waits needs nothing.
        has = self.writer.done if self.writer else 0 if in_memory else len(self.image_set)
        done = int(distributed.gather_rows(torch.tensor([[has]])).min())
        if self.writer is not None:
            self.writer.start(done)
        if done and distributed.rank() == 0:
            logger.warning("teacher's embeddings of %s: going on behind %d images", self.image_set.name, done)
        for rows in embedding_rows(self.model, self.image_set, self.device, done=done):
            if in_memory:
                kept = torch.empty(len(self.image_set), rows.shape[1]) if kept is None else kept
                kept[done : done + len(rows)] = rows
                done += len(rows)
            self._write(rows)
            _leave_if_asked()
        self._write(None)
        if in_memory:
            self.found = kept

    def _write(self, rows: Tensor | None) -> None:
        """Rows, or None at the end. A disk that fails now is done without, in another pass."""
        if self.writer is None:
            return
        try:
            self.writer.finish() if rows is None else self.writer.add(rows)
        except OSError as error:
            self._do_without_disk(str(error))
            self.writer.discard()
            self.leave()

    def leave(self) -> None:
        """Let go of the lock; what is sure of an unfinished file stays."""
        if self.writer is not None:
            self.writer.leave()
            self.writer = None
        self.lock.release()

    def share(self, *, replace: bool) -> None:
        """Into the store, if it is not there; also what was computed while there was no store."""
        if self.shared is None or not self.has_disk:
            return
        try:
            self.shared.put(self.path, self.shared_name, replace=replace)
        except Exception as error:
            logger.warning("the teacher's embeddings are not shared through the store: %s", error)
