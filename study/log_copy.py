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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sqlalchemy.exc import SQLAlchemyError

from infra import storage
from infra.errors import ServiceError
from study.errors import SERVICE_ERRORS, USER_ERRORS, StudyFailed
from study.files import study_prefix
from study.store import StudyRow, StudyStore, owner_identity

__all__ = ["ENDED", "copied_output", "log_prefix", "logs"]

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


class _Tee:
    """A text stream that also writes to a file; everything else is the stream's."""

    def __init__(self, stream: IO[str], file: IO[str]) -> None:
        self.stream, self.file = stream, file

    def write(self, text: str) -> int:
        if not self.file.closed:  # a thread may hold on to this stream after the log has ended
            self.file.write(text)
        return self.stream.write(text)

    def flush(self) -> None:
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
def copied_output(folder: Path, *, bucket: str, store: StudyStore) -> Iterator[None]:
    """Everything this process prints goes to a file in `folder` (mode 0600) as well, and from there to S3.

    Nothing is copied while another process drives the study. An error that leaves the block is in the log, too.
    """
    study = store.load()
    path = folder / f"driver-{study.slug}-{os.getpid()}.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    path.touch(mode=0o600)
    before = sys.stdout, sys.stderr
    with open(path, "w", encoding="utf-8", buffering=1) as file:
        print(time.strftime("%Y-%m-%d %H:%M:%S %z"), "driver of", study.name, file=file)
        copier = _Copier(path, log_prefix(bucket, study), store)
        copier.start()
        sys.stdout, sys.stderr = _Tee(sys.stdout, file), _Tee(sys.stderr, file)
        try:
            yield
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
