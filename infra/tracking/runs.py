"""The MLflow record of a study, written behind its back: an outage never blocks or raises into the caller.

Calls put operations on in-memory queues; one thread sends them in order and repeats each until the server has it,
records before artifacts, whose storage may be away alone. The queues die with the process, and that is fine: the
study's database is the spool. After a crash the caller replays everything, and every operation is idempotent (runs are
found by key, points carry their time stamps). What somebody deletes in MLflow is taken out of its trash or made anew,
and everything is replayed as well.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import random
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from infra.errors import UserError
from infra.tracking import calls as mlflow_calls
from infra.tracking.calls import Point, check_name

log = logging.getLogger("agft.tracking")

FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 0.5, 30.0
Kind = Literal["records", "artifacts"]
MAX_ARTIFACT_BYTES = 64_000_000  # weights belong in S3, not here


@dataclass(frozen=True)
class Operation:
    """One thing to tell the server."""

    key: str
    what: str
    call: Callable[[], None]
    kind: Kind = "records"
    replayed: bool = False

    def replaces(self, older: Operation) -> bool:
        """Whether both store the same file of the same run."""
        return self.kind == older.kind == "artifacts" and (self.key, self.what) == (older.key, older.what)


def view_name(key: str) -> str:
    """Names the view of a run's list in addresses: the key may hold what stands in none."""
    return f"agft-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


class Tracker:
    """One experiment's logger. Thread-safe; make one per process. Illegal names are a `UserError` at the call.

    `replay` says everything again that this tracker was told, from where it is stored; it is called on the tracker's
    own thread when a run that was there is gone.
    """

    def __init__(self, tracking_uri: str, experiment: str, replay: Callable[[Tracker], None] | None = None) -> None:
        self.tracking_uri, self.experiment, self.replay = tracking_uri, experiment, replay
        self.dropped: list[str] = []  # what the server refused for good, with its reason
        self._queues: dict[Kind, deque[Operation]] = {"records": deque(), "artifacts": deque()}
        self._changed = threading.Condition()
        self._closing = False
        self._outages: dict[Kind, str] = {}  # why they are not taken now
        self._pauses: dict[Kind, float] = dict.fromkeys(self._queues, FIRST_PAUSE_SECONDS)  # after the next failure
        self._due: dict[Kind, float] = dict.fromkeys(self._queues, 0.0)  # not tried before, on the monotonic clock
        self._run_ids: dict[str, str] = {}
        self._seen: set[str] = set()  # keys whose run we have had
        self._lost = False  # one of them is gone
        self._again: list[Operation] | None = None  # what a replay puts in, while it does
        self._client: Any = None
        self._experiment_id: str | None = None
        self._thread = threading.Thread(target=self._work, name="agft-tracking", daemon=True)
        self._thread.start()

    def ensure_run(
        self,
        key: str,
        *,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        start_time_ms: int,
        parent: str | None = None,
        reopen: bool = False,
    ) -> None:
        """Find or create the run of `key`, below the run of `parent`.

        Params are written once: existing ones stay as they are. `reopen` sets a finished run back to RUNNING.
        """
        check_name(key, "run key")
        for param in params:
            check_name(param, "parameter name")
        params, tags = dict(params), dict(tags)

        def call() -> None:
            parent_run_id = self._find(parent) if parent else None
            client, experiment_id = self._connected()
            if key in self._seen:
                self._look(key)
            run_id = mlflow_calls.ensure_run(
                client, experiment_id, key, name=name, parent_run_id=parent_run_id, params=params, tags=tags,
                start_time_ms=start_time_ms, reopen=reopen,
            )  # fmt: skip
            self._know(key, run_id)

        self._enqueue(Operation(key, f"run {name!r}", call))

    def check(self, key: str) -> None:
        """Look whether the runs of `key` and below are all there still, and send everything again if not."""

        def call() -> None:
            found = mlflow_calls.run_keys(*self._connected(), key)
            self._lost = any(seen not in found for seen in self._seen if f"{seen}/".startswith(f"{key}/"))

        self._enqueue(Operation(key, "whether its runs are there", call))

    def log(self, key: str, points: Sequence[Point]) -> None:
        """Log points to the run of `key`; sent in batches of 1000."""
        for name in {point.name for point in points}:
            check_name(name, "metric name")
        for start in range(0, len(points), mlflow_calls.POINTS_PER_CALL):
            part = list(points)[start : start + mlflow_calls.POINTS_PER_CALL]
            self._put(key, f"{len(part)} points", functools.partial(mlflow_calls.send_points, points=part))

    def set_tags(self, key: str, tags: Mapping[str, str]) -> None:
        """Set tags of the run of `key`; the last value wins."""
        tags = dict(tags)
        self._put(key, "tags", lambda client, run_id: mlflow_calls.send_tags(client, run_id, tags))

    def describe(self, key: str, text: Callable[[Callable[[str], str | None]], str]) -> None:
        """Set the run's description (Markdown). `text` is called with `run_page` when it is sent, so it can link."""

        def send(client: Any, run_id: str) -> None:
            mlflow_calls.send_tags(client, run_id, {"mlflow.note.content": text(self.run_page)})

        self._put(key, "description", send)

    def log_inputs(self, key: str, datasets: Sequence[tuple[str, str, str]]) -> None:
        """Say which datasets the run read: (name, SHA-256, role) each; saying it again adds nothing."""
        self._put(key, f"{len(datasets)} datasets", functools.partial(mlflow_calls.send_inputs, datasets=datasets))

    def log_text(self, key: str, text: str, artifact_path: str) -> None:
        """Store `text` as the run's artifact `artifact_path`, replacing an older one."""
        self._log_artifact(key, text.encode(), artifact_path)

    def log_file(self, key: str, path: Path, artifact_path: str) -> None:
        """Store the file's bytes of now as the run's artifact `artifact_path` (its full path in the run)."""
        if path.stat().st_size > MAX_ARTIFACT_BYTES:
            raise UserError(f"{path}: {path.stat().st_size} bytes; MLflow gets at most {MAX_ARTIFACT_BYTES}, use S3")
        self._log_artifact(key, path.read_bytes(), artifact_path)

    def finish(self, key: str, status: Literal["FINISHED", "KILLED", "FAILED"], end_time_ms: int) -> None:
        """End the run of `key` with this status and time."""
        self._put(key, f"end ({status})", lambda client, run_id: client.set_terminated(run_id, status, end_time_ms))

    @property
    def why_waiting(self) -> str:
        """Why MLflow takes nothing now, as it says itself; '' while it does, or has not been asked."""
        with self._changed:
            return next(iter(self._outages.values()), "")

    def run_id(self, key: str) -> str | None:
        """The run's id, or None while the server has not answered yet. Does not block."""
        with self._changed:
            return self._run_ids.get(key)

    def run_page(self, key: str) -> str | None:
        """Address of the run in the UI, or None while the server has not answered yet. Does not block."""
        found = self.run_id(key)
        return f"{self.tracking_uri}/#/experiments/{self._experiment_id}/runs/{found}" if found else None

    def share_view(self, key: str, view: Callable[[str], Mapping[str, Any]]) -> None:
        """Keep how the list of runs opens at `view_page(key)`; `view` is called with the run's id when it is sent."""

        def send(client: Any, run_id: str) -> None:
            mlflow_calls.send_view(client, self._connected()[1], view_name(key), view(run_id))

        self._put(key, "view of its runs", send)

    def view_page(self, key: str) -> str:
        """Address of the list of runs as `share_view` has it; see `page` while the server has not answered yet."""
        found = self.page()
        if not self._experiment_id:
            return found
        return f"{found}?workflowType=machine_learning&viewStateShareKey={view_name(key)}"

    def page(self) -> str:
        """Address of the experiment's runs in the UI; of all experiments while the server has not answered yet."""
        base = f"{self.tracking_uri}/#/experiments"
        return f"{base}/{self._experiment_id}/runs" if self._experiment_id else base

    def flush(self, timeout_seconds: float) -> int:
        """Wait until everything is sent, at most so long; returns how many operations are left."""
        deadline = time.monotonic() + timeout_seconds
        with self._changed:
            for kind in self._queues:
                self._hurry(kind)
            self._changed.notify_all()
            while self._num_left() and (left := deadline - time.monotonic()) > 0 and self._thread.is_alive():
                self._changed.wait(left)
            return self._num_left()

    def close(self, timeout_seconds: float) -> int:
        """`flush`, then end the thread; what is left is forgotten here (the study replays it) and counted."""
        left = self.flush(timeout_seconds)
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(1.0)  # a request under way is abandoned: the thread is a daemon
        if left:
            log.warning("%d records were not sent to MLflow at %s; the study keeps them", left, self.tracking_uri)
        return left

    def _put(self, key: str, what: str, send: Callable[[Any, str], None], kind: Kind = "records") -> None:
        """Queue `send(client, run id)` for the run of `key`."""
        self._enqueue(Operation(key, what, lambda: send(self._connected()[0], self._find(key)), kind))

    def _enqueue(self, fresh: Operation) -> None:
        with self._changed:
            if self._closing:
                return
            if self._again is not None and threading.current_thread() is self._thread:
                self._again.append(replace(fresh, replayed=True))
                return
            queue = self._queues[fresh.kind]
            # A newer version of a file that waits (the first may be under way) replaces it.
            for older in [old for old in list(queue)[1:] if fresh.replaces(old)]:
                queue.remove(older)
            queue.append(fresh)
            self._changed.notify_all()

    def _connected(self) -> tuple[Any, str]:
        if self._client is None:
            self._client = mlflow_calls.connect(self.tracking_uri)
        if self._experiment_id is None:
            self._experiment_id = mlflow_calls.experiment_id(self._client, self.experiment)
        return self._client, self._experiment_id

    def _find(self, key: str) -> str:
        known = self.run_id(key)
        if known is None:
            run = self._look(key) or mlflow_calls.restored_run(*self._connected(), key)
            if run is None:
                raise LookupError(f"no run has the key {key!r}; call ensure_run first")
            known = self._know(key, str(run.info.run_id))
        return known

    def _look(self, key: str) -> Any | None:
        """The active run of `key`; notes it when there was one and is none any more."""
        run = mlflow_calls.find_run(*self._connected(), key)
        self._lost |= run is None and key in self._seen
        return run

    def _know(self, key: str, run_id: str) -> str:
        with self._changed:
            self._run_ids[key] = run_id
            self._seen.add(key)
        return run_id

    def _log_artifact(self, key: str, data: bytes, artifact_path: str) -> None:
        target = PurePosixPath(artifact_path)
        if target.is_absolute() or ".." in target.parts or not target.name:
            raise UserError(f"artifact path {artifact_path!r}: expected a relative path without '..'")

        def send(client: Any, run_id: str) -> None:
            with tempfile.TemporaryDirectory() as folder:
                local = Path(folder) / target.name
                local.write_bytes(data)
                client.log_artifact(run_id, str(local), str(target.parent).strip(".") or None)

        self._put(key, f"artifact {artifact_path}", send, "artifacts")

    def _work(self) -> None:
        retried: Operation | None = None
        while (operation := self._next()) is not None:
            try:
                operation.call()
            except Exception as error:
                reason = mlflow_calls.outage(error)
                if reason is not None:
                    self._put_off(operation, reason)
                    continue
                if retried is not operation and self._forget(operation.key):
                    retried = operation
                    continue
                if self._replayed(operation, before=True):
                    continue
                self.dropped.append(f"{operation.key}: {operation.what}: {' '.join(str(error).split())[:300]}")
                log.error("MLflow refuses a record for good: %s", self.dropped[-1])
            self._replayed(operation, before=False)
            self._done(operation)

    def _next(self) -> Operation | None:
        """Wait for the operation to try now; None when the tracker closes.

        An artifact comes when no record is left: its run has to be there first, and records never wait for a storage
        that is away.
        """
        with self._changed:
            while not self._closing:
                kind = next((kind for kind, queue in self._queues.items() if queue), None)
                left = None if kind is None else self._due[kind] - time.monotonic()
                if kind is not None and left is not None and left <= 0:
                    return self._queues[kind][0]
                self._changed.wait(left)
        return None

    def _replayed(self, operation: Operation, *, before: bool) -> bool:
        """Whether a run was lost, so that everything is sent again: before this operation, which is then tried once
        more, or after it. What is part of that asks for no other."""
        lost, self._lost = self._lost, False
        if not lost or self.replay is None or operation.replayed:
            return False
        log.warning("runs are gone from MLflow at %s: everything is sent again", self.tracking_uri)
        self._again = []
        try:
            self.replay(self)
        except Exception as error:  # of the store, which may be away
            self.dropped.append(f"{operation.key}: everything again: {' '.join(str(error).split())[:300]}")
            log.error("what MLflow lost could not be sent again: %s", self.dropped[-1])
            return False
        finally:
            told, self._again = self._again, None
        with self._changed:
            for each in reversed(told):
                self._queues[each.kind].insert(0 if before or each.kind != operation.kind else 1, each)
        return True

    def _put_off(self, operation: Operation, reason: str) -> None:
        """Note the outage (one warning for each), and when its kind is tried again; a flush makes it sooner."""
        kind = operation.kind
        if kind not in self._outages:
            log.warning("MLflow at %s takes no %s (%s); they are sent later", self.tracking_uri, kind, reason)
        with self._changed:
            self._outages[kind] = reason
            queue = self._queues[kind]
            if any(other is not operation and other.replaces(operation) for other in queue):
                queue.remove(operation)  # else it would be sent after its successor
            elif kind == "artifacts":
                queue.rotate(-1)  # another one may be taken
            self._due[kind] = time.monotonic() + self._pauses[kind] * random.uniform(0.7, 1.3)
            self._pauses[kind] = min(2 * self._pauses[kind], LONGEST_PAUSE_SECONDS)

    def _hurry(self, kind: Kind) -> None:
        self._pauses[kind], self._due[kind] = FIRST_PAUSE_SECONDS, 0.0

    def _num_left(self) -> int:
        return sum(len(queue) for queue in self._queues.values())

    def _forget(self, key: str) -> bool:
        """Whether we knew a run of `key`, or the experiment: they may be deleted, so look once more before dropping."""
        with self._changed:
            known, self._experiment_id = self._experiment_id, None
            return self._run_ids.pop(key, None) is not None or known is not None

    def _done(self, operation: Operation) -> None:
        kind = operation.kind
        with self._changed:
            self._queues[kind].remove(operation)
            self._hurry(kind)
            left, was_away = self._num_left(), self._outages.pop(kind, "")
            self._changed.notify_all()
        if was_away:
            log.warning("MLflow at %s takes %s again; %d to send", self.tracking_uri, kind, left)
