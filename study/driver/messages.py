"""The sentences of a running study: one line for an epoch, one for a trial, one for the whole."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import queue
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from http.client import HTTPException
from textwrap import shorten
from typing import Any
from urllib.parse import urlsplit

from study.console import duration
from study.errors import UserError
from study.results.ranking import best_trial
from study.store.rows import StudyRow, TrialRow
from trainers.schema.records import Ending, EpochRecord, Sign
from trainers.schema.training import Metric


def epoch_line(number: int, record: EpochRecord, epochs: int, also: Sequence[Metric] = ()) -> str:
    """One epoch of one trial. `also`: metrics beside the accuracies."""
    best = " (best so far)" if record.best_epoch == record.epoch else ""
    floor = "" if record.feasible else "  below its floor"
    more = "".join(f"  {name.replace('_', ' ')} {getattr(record, name):6.1%}" for name in also)
    return (
        f"trial {number:>3}  epoch {record.epoch}/{epochs}  clean {record.clean_accuracy:6.1%}  "
        f"robust {record.robust_accuracy:6.1%}{more}{best}{floor}"
    )


def sign_line(number: int, row: TrialRow, sign: Sign) -> str:
    """How far a trial is inside an epoch that takes long."""
    epoch, epochs = (row.last.epoch if row.last else 0) + 1, row.config["train"]["epochs"]
    return f"trial {number:>3}  in epoch {epoch}/{epochs}: {progress(sign)}"


def progress(sign: Sign) -> str:
    """`training 45 %, 2,310 images/s, about 4 min left`."""
    left = sign.seconds_left
    share = min(1.0, sign.done / sign.total) if sign.total else 1.0
    rate = f", {sign.images_per_second:,.0f} images/s, about {duration(left)} left" if left is not None else ""
    return f"{sign.stage} {100 * share:.0f} %{rate}"


def study_line(done: int, budget: int, pruned: int, seconds_each: float) -> str:
    """How far the study is, and when it may end if trials go on finishing every `seconds_each` seconds."""
    left = budget - done
    eta = f", about {duration(seconds_each * left)} left" if left > 0 else ""
    return f"{done} of {budget} trials done ({pruned} stopped early){eta}"


def interrupted_line(number: int, ending: Ending, row: TrialRow) -> str:
    """Why a trial is started again, and from where."""
    why = shorten((ending.message or "its process was lost").splitlines()[-1], 200, placeholder=" ...")
    return f"trial {number:>3}  interrupted, goes on in epoch {len(row.epochs) + 1}: {why}"


def paused_line(reason: str, command: str) -> str:
    """Why a study does not go on now, and what makes it go on."""
    return f"paused: {' '.join(reason.split())}; nothing is lost. Go on with {command}"


def idle_line(number: int, awaited: int, lag: int) -> str:
    """Why a trial is not started though the cluster has room for it."""
    return f"trial {number} waits for trial {awaited}: it is to know all trials before {number - lag} (lag {lag})"


def waiting_line(number: int, need: Mapping[str, float], total: Mapping[str, float], free: Mapping[str, float]) -> str:
    """Why nothing of a study runs: what one trial needs, and what the cluster has left."""
    left = ", ".join(f"{amount:g} {name} ({free.get(name, 0.0):g} of {total.get(name, 0.0):g} are free)"
                     for name, amount in need.items())  # fmt: skip
    return f"trial {number:>3}  waits for room on the cluster: it needs {left}"


def message_of(study: StudyRow, state: str, trials: Sequence[TrialRow]) -> dict[str, Any]:
    """What a webhook is told: how many trials there are in which state, and the best one so far."""
    best = best_trial(trials, study.goal) if study.goal else None
    counts = {name: sum(row.state == name for row in trials) for name in ("complete", "pruned", "failed", "running")}
    return {
        "study": study.name,
        "state": state,
        "trials": {**counts, "budget": study.spec.budget.trials},
        "best": best and best.last and {
            "trial": best.number, "params": best.params, "epoch": best.last.best_epoch,
            "clean_accuracy": best.last.best_clean_accuracy, "robust_accuracy": best.last.best_robust_accuracy,
            **{name: best.last.at_best(name) for name in study.spec.goal.calibrations},
        },
    }  # fmt: skip


# Telling a web address that something happened to a study (it finished, failed, paused, or has a new best trial) or to
# a champion (promoted, refused, rolled back).
#
# Address and secret come from the environment and are shown nowhere. A receiver that is slow, broken or gone costs the
# study nothing: messages wait in a short queue on a thread of their own, the oldest go first when it is full.

log = logging.getLogger("agft")
EVENTS = ("finished", "failed", "paused", "new_best", "promoted", "refused", "rolled_back")
TIMEOUT_SECONDS = 10.0
PAUSES_SECONDS = (1.0, 4.0, 15.0)  # before the second, third and fourth try
WAITING = 100
SIGNATURE = "X-Agft-Signature"


class Notifier:
    """Sends `{event, time}` and the payload as JSON by POST. Without a URL every call does nothing.

    With a secret, the header `X-Agft-Signature` is `sha256=` and the hex HMAC-SHA256 of the body's bytes.
    """

    def __init__(
        self, url: str | None, *, secret: str | None = None, timeout: float = TIMEOUT_SECONDS,
        pauses: Sequence[float] = PAUSES_SECONDS,
    ) -> None:  # fmt: skip
        if url and (urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname):
            raise UserError("AGFT_WEBHOOK: not an address that begins with http:// or https:// and a host")
        self._url, self._secret, self._timeout, self._pauses = url, secret, timeout, tuple(pauses)
        self._waiting: queue.Queue[bytes] = queue.Queue(WAITING)
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        """By `AGFT_WEBHOOK` and `AGFT_WEBHOOK_SECRET`; one that does nothing if there is no address."""
        return cls(environ.get("AGFT_WEBHOOK") or None, secret=environ.get("AGFT_WEBHOOK_SECRET") or None)

    def __repr__(self) -> str:
        return f"Notifier({'on' if self._url else 'off'})"  # the address may hold a secret

    def __getstate__(self) -> None:
        raise TypeError("a Notifier holds secrets and is not pickled; make another one from the environment")

    def send(self, event: str, payload: Mapping[str, Any]) -> None:
        """Queue a message and return at once. `payload`: JSON values, of a study those of `message_of`."""
        assert event in EVENTS, event
        if not self._url or self._closing.is_set():
            return
        body = json.dumps({"event": event, "time": datetime.now(UTC).isoformat(timespec="seconds"), **payload})
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="agft-webhook", daemon=True)
            self._thread.start()
        while True:
            try:
                self._waiting.put_nowait(body.encode())
                return
            except queue.Full:
                self._drop_oldest()

    def close(self, seconds: float = 5.0) -> int:
        """Wait so long for what is queued; returns how many messages were not delivered."""
        if self._thread is None:
            return 0
        deadline = time.monotonic() + seconds
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.02)
        self._closing.set()
        return self._waiting.unfinished_tasks

    def _drop_oldest(self) -> None:
        try:
            self._waiting.get_nowait()
            self._waiting.task_done()
            log.warning("the webhook is too slow; its oldest message is dropped")
        except queue.Empty:
            return  # the thread took it meanwhile, so there is room

    def _work(self) -> None:
        while not self._closing.is_set():
            body = self._waiting.get()
            try:
                self._deliver(body)
            finally:
                self._waiting.task_done()

    def _deliver(self, body: bytes) -> None:
        reason = ""
        for pause in (0.0, *self._pauses):
            if self._closing.wait(pause):
                return
            reason, again = self._post(body)
            if not again:
                break
        if reason:
            log.warning("the webhook did not take a message: %s", reason)

    def _post(self, body: bytes) -> tuple[str, bool]:
        """What went wrong, without the address ('' if nothing), and whether another try may help."""
        assert self._url is not None
        headers = {"Content-Type": "application/json", "User-Agent": "agft-study"}
        if self._secret:
            headers[SIGNATURE] = "sha256=" + hmac.new(self._secret.encode(), body, hashlib.sha256).hexdigest()
        request = urllib.request.Request(self._url, data=body, headers=headers, method="POST")
        try:
            with _OPENER.open(request, timeout=self._timeout):
                return "", False
        except urllib.error.HTTPError as error:
            return f"HTTP {error.code}", error.code >= 500 or error.code == 429
        except (OSError, ValueError, HTTPException) as error:  # their texts may hold the address
            return type(error).__name__, True


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None  # a signed body goes where the user said, nowhere else


_OPENER = urllib.request.build_opener(_NoRedirect)
