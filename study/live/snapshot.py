"""One study as the live page shows it now: read from the store when somebody asks, and only what has changed."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from study.report.content import content_of
from study.report.page import html_of, parts_of, script_json
from study.results.facts import METRICS, trials_of
from study.results.importance import Importances, importances
from study.results.status import live_state
from study.store import tables as t
from study.store.requests import promotions
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore

EVERY_SECONDS = 1.0  # the store is read at most so often, however many look
COMPUTING = "They are being computed."
WEB = Path(__file__).parents[1] / "report" / "web"
Mark = tuple[Any, ...]


class Snapshot:
    """A study's page and its parts. Thread-safe; costs nothing while nobody asks."""

    def __init__(self, store: StudyStore) -> None:
        self.store = store
        self.version, self.parts = "", "{}"
        self._rows: dict[int, tuple[Mark, TrialRow]] = {}
        self._seen: Any = None
        self._next = float("-inf")
        self._lock = threading.Lock()
        self._known: tuple[Importances, ...] = ()
        self._ranked: list[int] | None = None  # full-length trials that `_known` is about
        self._ranking: threading.Thread | None = None
        self._content: Any = None
        self._parts: dict[str, Any] = {}
        self._page = ("", "")  # of a version

    def now(self) -> tuple[str, str]:
        """(version, the page's parts as JSON), at most a second old."""
        with self._lock:
            began = time.monotonic()
            if began >= self._next:
                self._read()
                self._next = time.monotonic() + max(EVERY_SECONDS, time.monotonic() - began)  # half a core at most
            return self.version, self.parts

    def page(self, token: str) -> str:
        """The whole page. `token`, the server's, goes with every button."""
        self.now()
        with self._lock:
            if self._page[0] != self.version:
                told = {"version": self.version, "token": token, "study": self.store.name}
                told |= {name: self._parts[name] for name in ("state", "message", "can")}
                more = [(WEB / name).read_text(encoding="utf-8") for name in ("live.html", "live.js")]
                live = (more[0], more[1], script_json(told))
                self._page = self.version, html_of(self._content, parts=self._parts, live=live)
            return self._page[1]

    def _read(self) -> None:
        study = self.store.load()
        rows = self._trials()
        promoted = promotions(self.store)
        self._rank(study, rows)
        marks = [mark for mark, _ in self._rows.values()]
        asked = [(each["state"], each["name"]) for each in promoted]
        seen = (live_state(study), study.message, study.desired, study.spec.budget, marks, asked, self._known)
        if seen == self._seen:
            return
        self._content = content_of(study, rows, known=self._known, promotions=promoted)
        self._parts = {**parts_of(self._content), **_controls(study)}
        self.parts = json.dumps(self._parts, allow_nan=False)
        self.version = hashlib.sha256(self.parts.encode()).hexdigest()[:16]
        self._seen = seen

    def _trials(self) -> list[TrialRow]:
        """All trials; those are read again of which something was written."""
        marks = self._marks()
        gone = self._rows.keys() - marks.keys()
        changed = [n for n, mark in marks.items() if n not in self._rows or self._rows[n][0] != mark]
        many = len(changed) > 20
        fresh = {row.number: row for row in (self.store.trials() if many else map(self.store.trial, changed))}
        for number in gone:
            del self._rows[number]
        for number in changed:
            self._rows[number] = marks[number], fresh[number]
        self._rows = dict(sorted(self._rows.items()))
        return [row for _, row in self._rows.values()]

    def _marks(self) -> dict[int, Mark]:
        """Of every trial, what is different after each write to it."""
        name, found = self.store.name, {}

        def counted(table: sa.Table, *columns: Any) -> Mapping[int, tuple[Any, ...]]:
            asked = sa.select(table.c.number, *columns).where(table.c.study == name).group_by(table.c.number)
            return {row[0]: tuple(row[1:]) for row in connection.execute(asked)}

        with self.store.engine.connect() as connection:
            c = t.trials.c
            states = sa.select(c.number, c.state, c.ended_ms, c.finishing).where(c.study == name)
            epochs = counted(t.epochs, sa.func.count())
            attempts = counted(t.attempts, sa.func.count(), sa.func.count(t.attempts.c.ended_ms))
            for row in connection.execute(states):
                found[row[0]] = (*row[1:], epochs.get(row[0]), attempts.get(row[0]))
        return found

    def _rank(self, study: StudyRow, rows: list[TrialRow]) -> None:
        """Importances take seconds of many trials: they are computed beside, and shown when they are there."""
        complete = [row.number for row in rows if row.state == "complete"]
        if complete == self._ranked or (self._ranking is not None and self._ranking.is_alive()):
            return
        if not self._known:
            self._known = tuple(Importances(name, len(complete), (), None, None, COMPUTING)
                                for name in (*METRICS, *study.spec.goal.calibrations))  # fmt: skip

        def compute() -> None:
            self._known = tuple(importances(
                trials_of(study, rows), study.spec.dimensions(), also=study.spec.goal.calibrations
            ))  # fmt: skip

        self._ranked = complete
        self._ranking = threading.Thread(target=compute, name="agft-ui-importances", daemon=True)
        self._ranking.start()


def _controls(study: StudyRow) -> dict[str, Any]:
    """What may be done now."""
    state = live_state(study)
    can = {
        "pause": state in ("running", "queued") and study.desired == "run",
        "resume": state in ("queued", "paused", "interrupted", "failed", "stopped", "finished"),
        "stop": state not in ("stopped", "finished"),
        "extend": study.spec.sampler.row.exhaustive is False,
        "promote": state not in ("running", "queued"),
    }
    return {"state": state, "message": study.message or "", "can": can}
