"""Parts of a prepared set, each decoded by one process into one file. Imports no torch: it runs in such processes."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import secrets
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.data.pictures import listed
from trainers.data.prepared.decode import decode
from trainers.data.prepared.shards import Shard, npy_header
from trainers.errors import UserError
from trainers.files import TEMPORARY, hash_file, sync_folder, take_space, write_whole

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from trainers.data.base import Pixels


FEW = 256  # images for which no second process is worth its start
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Part:
    """`images` of the set from `first` on, to be decoded into `path`."""

    number: int
    path: Path
    plan: str
    resolution: str
    size: int
    first: int
    images: int

    @property
    def note(self) -> Path:
        """What the part is, beside it until the manifest says so."""
        return self.path.with_suffix(".json")


@dataclass(frozen=True)
class Made:
    """A part that is on the disk. `digests`: 32 bytes an image."""

    shard: Shard
    digests: bytes
    kept: bool  # an earlier run made it


class Stopped(Exception):
    """Another part failed."""


class Unreadable(UserError):
    """Images that cannot be read, a sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(tuple(problems))  # what it is pickled by, on its way to the parent

    @property
    def problems(self) -> tuple[str, ...]:
        return tuple(self.args[0])

    def __str__(self) -> str:
        return listed(self.problems, "images cannot be read")


class Counter:
    """How many images of every part are ready, and whether to stop; seen by all processes that decode.

    A number is written by one process only and needs no lock, which a killed process could take with it.
    """

    def __init__(self, parts: int, context: Any = None) -> None:
        size = 2 * parts + 1
        self.values = context.RawArray("q", size) if context is not None else [0] * size

    def ready(self, part: Part, images: int, *, kept: bool) -> None:
        self.values[2 * part.number + int(kept)] = images

    def stop(self) -> None:
        self.values[len(self.values) - 1] = 1

    @property
    def stopped(self) -> bool:
        return bool(self.values[len(self.values) - 1])

    def totals(self) -> tuple[int, int]:
        """Images that are ready, and those of them that an earlier run made."""
        made, kept = (sum(self.values[start : len(self.values) - 1 : 2]) for start in (0, 1))
        return made + kept, kept


def made_parts(
    parts: Sequence[Part], images: Sequence[Path] | Pixels, workers: int, progress: Callable[[int, int], None]
) -> list[Made]:
    """All parts, made or found made, in order. Raises what the first failing part raised; the others are stopped.

    Images that cannot be read stop no other part: `Unreadable` names all of them at the end.
    """
    workers = min(workers, len(parts))
    made: dict[int, Made] = {}
    unreadable: list[str] = []
    if workers <= 1 or len(images) <= FEW:
        counter = Counter(len(parts))

        for part in parts:
            try:
                made[part.number] = make_part(part, images[part.first : part.first + part.images], counter, progress)
            except Unreadable as error:
                unreadable += error.problems
            progress(*counter.totals())
        return _in_order(made, unreadable)
    context = multiprocessing.get_context("spawn")  # the parent may hold torch's threads
    counter = Counter(len(parts), context)
    pending: dict[Future[Made], int] = {}
    with _interrupts_noted() as interrupts:
        with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(counter.values,)) as pool:
            try:
                for number, part in enumerate(parts):
                    with _interrupts_blocked():
                        future = pool.submit(_make, part, images[part.first : part.first + part.images])
                    pending[future] = number
                    while len(pending) > 2 * workers or (number == len(parts) - 1 and pending):
                        done, _ = wait(pending, POLL_SECONDS, FIRST_COMPLETED)
                        for future in done:
                            finished = pending.pop(future)
                            try:
                                made[finished] = future.result()
                            except Unreadable as error:
                                unreadable += error.problems
                        progress(*counter.totals())
                        if interrupts:
                            raise KeyboardInterrupt
            except BrokenExecutor as error:
                raise OSError("a process that decodes was killed (is there enough memory?)") from error
            finally:
                counter.stop()
                for future in pending:
                    future.cancel()
        if interrupts:  # after the last look
            raise KeyboardInterrupt
    return _in_order(made, unreadable)


def _in_order(made: dict[int, Made], unreadable: Sequence[str]) -> list[Made]:
    if unreadable:
        raise Unreadable(sorted(unreadable))
    return [made[number] for number in sorted(made)]


@contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """Ctrl-C is put on the list and raised by nobody; the caller looks at the list.

    KeyboardInterrupt comes between any two steps, also of the code that starts a process: raised between that and the
    writing of what the process is to do, it leaves one that fails on half a message.
    """
    noted: list[int] = []
    handler = signal.getsignal(signal.SIGINT) if threading.current_thread() is threading.main_thread() else None
    if handler is None:  # only the main thread gets signals, and only a handler of Python's can be put back
        yield noted
        return
    signal.signal(signal.SIGINT, lambda number, frame: noted.append(number))
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, handler)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that are started meanwhile inherit it: they never see Ctrl-C, not even while they import."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


_shared: Counter = Counter(0)


def _begin(values: Any) -> None:
    """In a fresh process: share the counter, and end when the parent has ended."""
    _shared.values = values
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make(part: Part, items: Sequence[Path] | NDArray[np.uint8]) -> Made:
    return make_part(part, items, _shared)


def make_part(
    part: Part,
    items: Sequence[Path] | NDArray[np.uint8],
    counter: Counter,
    progress: Callable[[int, int], None] = lambda done, kept: None,
) -> Made:
    """Decode the part into its file, unless the file is there for this plan and has its SHA-256.

    Raises `Unreadable` with all images of the part that are none.
    """
    if (found := _found(part)) is not None:
        counter.ready(part, part.images, kept=True)
        return found
    temporary = part.path.with_name(f"{part.path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    whole, digests, unreadable = hashlib.sha256(), [], []
    try:
        with temporary.open("xb") as file:
            header = npy_header((part.images, 3, part.size, part.size))
            take_space(file.fileno(), len(header) + part.images * 3 * part.size**2)
            file.write(header)
            whole.update(header)
            for item in items:
                if counter.stopped:
                    raise Stopped
                try:
                    data = decode(item, part.resolution, part.size).data
                except UserError as error:
                    unreadable.append(str(error))
                if unreadable:  # the others are looked at all the same: all are named in one message
                    continue
                digests.append(hashlib.sha256(data).digest())
                whole.update(data)
                file.write(data)
                counter.ready(part, len(digests), kept=False)
                progress(*counter.totals())
            if unreadable:
                raise Unreadable(unreadable)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(part.path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(part.path.parent)
    made = Made(Shard(part.path.name, part.images, whole.hexdigest()), b"".join(digests), kept=False)
    note = {"plan": part.plan, "sha256": made.shard.sha256, "digests": made.digests.hex()}
    write_whole(part.note, json.dumps(note).encode())
    return made


def _found(part: Part) -> Made | None:
    """The part, if an earlier run finished it."""
    try:
        note = json.loads(part.note.read_text())
        digests = bytes.fromhex(note["digests"])
        if note["plan"] != part.plan or len(digests) != 32 * part.images:
            return None
        sha256 = hash_file(part.path)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Made(Shard(part.path.name, part.images, sha256), digests, kept=True) if sha256 == note["sha256"] else None
