"""S3 that is away: trials wait for it with what they have, the driver proposes nothing, and nobody has failed.

Away is whatever may be there again later: it does not answer, is full, refuses the keys; or the disk here is full.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from infra import s3
from infra.errors import ServiceError, UserError
from study.console import duration
from trainers.errors import Interrupted

log = logging.getLogger("agft")

PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0)  # the last one again and again
GRACE_SECONDS = 60.0  # by which a trial outlasts its driver, which decides for all
PROBE_SECONDS = 10.0
AGAIN_SECONDS = 2.0

Done = TypeVar("Done")


@dataclass(frozen=True)
class Patience:
    """A trial's: repeats a step while S3 is away, for `seconds` and a little more.

    `tell(reason)`: what the driver is told meanwhile, nothing at the end; it answers `continue`, or what else the trial
    is to do. Raises `Interrupted` for that, or when the time is over.
    """

    tell: Callable[[str], str]
    seconds: float

    def __call__(self, step: Callable[..., Done], *given: object) -> Done:
        deadline = 0.0
        for pause in itertools.chain(PAUSES_SECONDS, itertools.repeat(PAUSES_SECONDS[-1])):
            try:
                with s3.one_attempt():
                    done = step(*given)
            except (ServiceError, OSError) as error:
                if not s3.is_away(error):
                    raise
                reason = str(error)
            else:
                if deadline:
                    self.tell("")
                return done
            deadline = deadline or time.monotonic() + self.seconds + GRACE_SECONDS
            if self.tell(reason) != "continue" or time.monotonic() > deadline:
                raise Interrupted(reason)
            time.sleep(pause)
        raise AssertionError("it repeats for ever")


class Watch(threading.Thread):
    """Asks S3 every few seconds from the driver's node. `reason`: why it is away; empty while it answers."""

    def __init__(self, bucket: str) -> None:
        super().__init__(name="agft-s3", daemon=True)
        self.bucket, self.reason, self.ended = bucket, "", threading.Event()

    def run(self) -> None:
        before = ""
        while not self.ended.wait(AGAIN_SECONDS if before and not self.reason else PROBE_SECONDS):
            now = self._ask()
            self.reason = now if before else ""  # one question may be lost
            before = now

    def _ask(self) -> str:
        try:
            s3.probe(self.bucket)
        except (ServiceError, UserError) as error:
            return str(error)
        except Exception as error:  # who watches goes on, whatever happens
            log.exception("S3 could not be asked")
            return f"S3 could not be asked: {type(error).__name__}"
        return ""


@dataclass
class Outage:
    """What a driver knows of it. `patience`: seconds until the study pauses; `waiting`: number -> why a trial waits."""

    patience: float
    reason: str = ""
    since: float = 0.0
    waiting: dict[int, str] = field(default_factory=dict)

    def hear(self, reason: str, waiting: Mapping[int, str], running: Collection[int], clock: float) -> list[str]:
        """What the driver itself has found out (empty: S3 answers) and what its trials say; the lines to print.

        A trial that waits alone may have a node that is cut off; where all wait, S3 is away for the study.
        """
        mine = {number: why for number, why in waiting.items() if number in running}
        if mine and len(mine) == len(running):
            reason = reason or next(iter(mine.values()))
        lines = []
        if reason and not self.reason:
            self.since = clock
            lines.append(f"waiting for S3, nothing is proposed, and the study pauses after {duration(self.patience)}: "
                         f"{reason}")  # fmt: skip
        elif self.reason and not reason:
            lines.append(f"S3 answers again, after {duration(clock - self.since)}")
        elif not reason:
            lines += [f"trial {n:>3}  waits for S3: {why}" for n, why in mine.items() if n not in self.waiting]
        self.reason, self.waiting = reason, mine
        return lines

    def over(self, clock: float) -> str:
        """Why the study is to pause; empty while it may wait."""
        if not self.reason or clock - self.since < self.patience:
            return ""
        return f"S3 has been away for {duration(self.patience)}: {self.reason}"
