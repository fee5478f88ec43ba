"""The driver's output, kept where any terminal can read it: beside the study's bytes in S3.

s3://BUCKET/studies/SLUG/logs/aTOKEN.log    what one driver printed, replaced as a whole every 20 s and at its end
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import IO, Any

from sqlalchemy.exc import SQLAlchemyError

from infra import storage
from infra.errors import ServiceError, while_full, while_unread
from study.artifacts.checkpoints import study_prefix
from study.errors import SERVICE_ERRORS, USER_ERRORS, StudyFailed
from study.results.status import live_state
from study.store.database import away
from study.store.lease import owner_identity
from study.store.rows import StudyRow
from study.store.store import StudyStore

log = logging.getLogger("agft")
COPY_SECONDS = 20.0
BYTES_PER_SECOND = 1_000_000  # a very long log is copied less often
LOOK_SECONDS = 1.0
ENDED = "the driver has ended"  # the last line of a log that is whole


def log_prefix(bucket: str, study: StudyRow) -> str:
    """URI of a study's logs, without a closing slash."""
    return f"{study_prefix(bucket, study.slug)}/logs"


def logs(bucket: str, study: StudyRow) -> list[storage.StoredObject]:
    """The logs of all drivers, oldest first."""
    return sorted(storage.list_objects(f"{log_prefix(bucket, study)}/"), key=lambda stored: stored.uri)


class _Log:
    """The file of what is printed, a line at a time; what a full disk does not take is written once there is room."""

    def __init__(self, path: Path) -> None:
        self.file = open(path, "w", encoding="utf-8", buffering=1)  # noqa: SIM115  # closed below

    def write(self, text: str) -> int:
        if not self.file.closed:  # a thread may hold on to a stream after the log has ended
            with while_full():
                self.file.write(text)
        return len(text)

    def close(self) -> None:
        with while_full():
            self.file.close()


class _Tee:
    """A text stream that also writes to a log; everything else is the stream's."""

    def __init__(self, stream: IO[str], file: _Log) -> None:
        self.stream, self.file = stream, file

    def write(self, text: str) -> int:
        self.file.write(text)
        with while_unread(self.stream):
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with while_unread(self.stream):
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class _Copier(threading.Thread):
    """Copies `path` to S3 whenever it has grown, once this process drives the study."""

    def __init__(self, path: Path, prefix: str, store: StudyStore) -> None:
        super().__init__(name="agft-log-copy", daemon=True)
        self.path, self.prefix, self.store = path, prefix, store
        self.token: int | None = None
        self.ended = threading.Event()
        self.copied = 0
        self.warned = False

    def run(self) -> None:
        wait = LOOK_SECONDS
        while not self.ended.wait(wait):
            self.copy()
            wait = LOOK_SECONDS if self.token is None else max(COPY_SECONDS, self.copied / BYTES_PER_SECOND)

    def copy(self) -> None:
        """Copy what is there; storage or the database that fails is a warning, once."""
        try:
            if self.token is None:
                study = self.store.load()
                self.token = study.token if study.lease_owner == owner_identity() else None
            if self.token is None:
                return
            content = self.path.read_bytes()
            if len(content) > self.copied:
                storage.put_bytes(f"{self.prefix}/a{self.token:06d}.log", content)
                self.copied = len(content)
            self.warned = False
        except (ServiceError, StudyFailed, SQLAlchemyError) as error:
            if not self.warned:
                log.warning("the log could not be copied to %s (%s); trying again", self.prefix, type(error).__name__)
            self.warned = True

    def close(self) -> None:
        """The last copy, after everything was written."""
        self.ended.set()
        self.join()
        self.copy()


@contextmanager
def copied_output(folder: Path, *, bucket: str, store: StudyStore) -> Iterator[Callable[[], None]]:
    """Everything this process prints goes to a file in `folder` (mode 0600) as well, and from there to S3; gives what
    copies it there at once.

    Nothing is copied while another process drives the study. An error that leaves the block is in the log, too.
    """
    study = store.load()
    path = folder / f"driver-{study.slug}-{os.getpid()}.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    before = sys.stdout, sys.stderr
    with closing(_Log(path)) as file:
        print(time.strftime("%Y-%m-%d %H:%M:%S %z"), "driver of", study.name, file=file)
        copier = _Copier(path, log_prefix(bucket, study), store)
        copier.start()
        sys.stdout, sys.stderr = _Tee(sys.stdout, file), _Tee(sys.stderr, file)
        try:
            yield copier.copy
        except (*USER_ERRORS, *SERVICE_ERRORS) as error:
            print(f"failed: {error}", file=file)
            raise
        except BaseException:
            print(traceback.format_exc(), file=file)
            raise
        finally:
            sys.stdout, sys.stderr = before
            print(time.strftime("%Y-%m-%d %H:%M:%S %z"), ENDED, file=file)
            copier.close()


# What a study's drivers printed, from S3, to its end or as it grows.

POLL_SECONDS = 3.0
LAST_COPY_SECONDS = 120.0  # after a driver has let go of its study, it closes MLflow and writes its report


def print_logs(store: StudyStore, bucket: str, write: Callable[[str], None]) -> bool:
    """Write everything there is, the oldest driver first; False if there is nothing."""
    return bool(_Reader(store, bucket, write).read())


def follow_logs(store: StudyStore, bucket: str, write: Callable[[str], None]) -> str:
    """Write what there is and what comes, until no driver drives the study any more; its state then.

    A study that is queued is waited for, and so is a database that goes away meanwhile.
    """
    reader = _Reader(store, bucket, write)
    silent_since, told = None, False
    while True:
        try:
            study = store.load()
        except SQLAlchemyError as error:
            if not (reason := away(error)):
                raise
            if not told:
                log.warning("the study database does not answer (%s); trying again", reason)
            told = True
            time.sleep(POLL_SECONDS)
            continue
        told = False
        reader.read()
        state = live_state(study)
        driven = state == "queued" or study.lease_seconds > 0
        silent_since = None if driven else silent_since or time.monotonic()
        if silent_since is not None and (
            reader.closed(study.token) or time.monotonic() - silent_since > LAST_COPY_SECONDS or state == "interrupted"
        ):
            return state
        time.sleep(POLL_SECONDS)


class _Reader:
    """Writes each whole line of each log once, however often it is read."""

    def __init__(self, store: StudyStore, bucket: str, write: Callable[[str], None]) -> None:
        self.bucket, self.study, self.write = bucket, store.load(), write
        self.seen: dict[str, int] = {}  # bytes of each log that were written
        self.whole: set[str] = set()  # logs that have their last line

    def read(self) -> int:
        """Write what is new; how many logs there are."""
        found = logs(self.bucket, self.study)
        for stored in found:
            seen = self.seen.get(stored.uri, 0)
            content = storage.get_bytes(stored.uri) if stored.size > seen and stored.uri not in self.whole else None
            end = content[0].rfind(b"\n") + 1 if content else 0
            if content is None or end <= seen:
                continue
            text = content[0][seen:end].decode("utf-8", errors="replace")
            self.write(text)
            self.seen[stored.uri] = end
            if text.rstrip().endswith(ENDED):
                self.whole.add(stored.uri)
        return len(found)

    def closed(self, token: int) -> bool:
        """Whether the log of the driver with `token` has its last line."""
        return any(uri.endswith(f"/a{token:06d}.log") for uri in self.whole)
