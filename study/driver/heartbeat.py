"""The thread that keeps a driver's lease and hears what users want."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from study.errors import LeaseLost, StudyFailed
from study.store.database import PATIENCE_SECONDS
from study.store.requests import pending
from study.store.rows import StudyRow
from study.store.store import StudyStore

log = logging.getLogger("agft")
HEARTBEAT_SECONDS = 5.0


class Heartbeat(threading.Thread):
    """Keeps the lease, adds up driving time, and learns what users want.

    `study` is the row as of the last beat (its desired state, its budget of now), `requests` what they ask of trials.
    `lost`: another driver has taken over, or may have, since the database has been away for `PATIENCE_SECONDS`. Between
    the end of the lease and then, the token still keeps this driver from writing over a newer one.
    """

    def __init__(self, store: StudyStore, token: int) -> None:
        super().__init__(name="agft-heartbeat", daemon=True)
        self.store, self.token = store, token
        self.study: StudyRow = store.load()
        self.requests: list[dict[str, Any]] = []
        self.lost = False
        self.ended = threading.Event()
        self.heard = time.monotonic()

    def run(self) -> None:
        try:
            self._beat()
        finally:  # also of an error that nobody expects: its traceback is printed, and the driver must not go on
            self.lost = not self.ended.is_set()

    def _beat(self) -> None:
        counted = time.monotonic()
        while not self.ended.wait(HEARTBEAT_SECONDS):
            clock = time.monotonic()
            try:
                self.store.renew(self.token, driven=clock - counted)
                counted = self.heard = clock
                self.study = self.store.load()
                self.requests = pending(self.store)
            except LeaseLost:
                return
            except (SQLAlchemyError, StudyFailed) as error:
                log.warning("the study database does not answer (%s)", type(error).__name__)
                if time.monotonic() - self.heard > PATIENCE_SECONDS:
                    return

    def stop(self) -> None:
        """End the thread; up to one beat of driving time stays uncounted."""
        self.ended.set()
        if self.is_alive():
            self.join()
