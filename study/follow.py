"""What a study's drivers printed, from S3, to its end or as it grows."""

from __future__ import annotations

import time
from collections.abc import Callable

from infra import storage
from study.log_copy import ENDED, logs
from study.status import live_state
from study.store import StudyStore

__all__ = ["follow_logs", "print_logs"]

POLL_SECONDS = 3.0
LAST_COPY_SECONDS = 120.0  # after a driver has let go of its study, it closes MLflow and writes its report


def print_logs(store: StudyStore, bucket: str, write: Callable[[str], None]) -> bool:
    """Write everything there is, the oldest driver first; False if there is nothing."""
    return bool(_Reader(store, bucket, write).read())


def follow_logs(store: StudyStore, bucket: str, write: Callable[[str], None]) -> str:
    """Write what there is and what comes, until no driver drives the study any more; its state then.

    A study that is queued is waited for.
    """
    reader = _Reader(store, bucket, write)
    silent_since = None
    while True:
        study = store.load()
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
