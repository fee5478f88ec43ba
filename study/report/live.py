"""The report of a running study, drawn again as it goes on and attached to its MLflow run.

Drawing takes a few seconds of CPU, so it happens in a thread of its own, and whatever goes wrong there is a warning:
a study never waits for a picture, and never ends because of one.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from infra.tracking.runs import Tracker
from study.audit.audit import audit
from study.report.page import write_report
from study.results.facts import trials_of
from study.results.importance import Importances, importances
from study.store.archive import stored_of
from study.store.requests import promotions
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore
from study.tracking import study_key, trial_key

log = logging.getLogger("agft.report")
EVERY_SECONDS = 60.0
SHARE = 0.05  # of one core, at most


class LiveReport:
    """Draws and attaches at most every `every_seconds`, and only what has changed. `wake` never blocks or raises.

    `folder` keeps the files; without one they go to a temporary folder, and only MLflow has them afterwards.
    """

    def __init__(
        self, store: StudyStore, tracker: Tracker, folder: Path | None = None, *, every_seconds: float = EVERY_SECONDS
    ) -> None:
        self.store, self.tracker, self.every_seconds = store, tracker, every_seconds
        self._temporary = tempfile.TemporaryDirectory(prefix="agft-report-") if folder is None else None
        self.folder = folder or Path(self._temporary.name)  # type: ignore[union-attr]
        self.drawn = 0
        self._attached: dict[str, str] = {}
        self._known: tuple[object, tuple[Importances, ...]] | None = None
        self._seen: object = None
        self._next = time.monotonic() + every_seconds
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Called at every turn of the driver: starts a drawing in the background when one is due."""
        if time.monotonic() < self._next or (self._thread is not None and self._thread.is_alive()):
            return
        self._next = time.monotonic() + self.every_seconds
        self._thread = threading.Thread(target=self._try, name="agft-report", daemon=True)
        self._thread.start()

    def close(self, timeout_seconds: float = 60.0) -> None:
        """Draw the end of the study, here and now; call it after the study's last state is stored."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        if self._thread is None or not self._thread.is_alive():
            self._try()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _try(self) -> None:
        began = time.monotonic()
        try:
            self._draw()
        except Exception as error:
            log.warning("the report was not drawn (%s: %s); the study goes on", type(error).__name__, error)
        self._next = max(self._next, time.monotonic() + (time.monotonic() - began) / SHARE)

    def _draw(self) -> None:
        """An audit takes as long as all proposals together did: no report of a study that is driven carries one."""
        study, rows, promoted = self.store.load(), self.store.trials(), promotions(self.store)
        links = links_of(self.tracker, study, rows)
        state = (study.state, links, [(row.number, row.state, len(row.epochs), len(row.attempts)) for row in rows])
        if study.baseline is None or state == self._seen:
            return
        told = "" if study.state == "running" else audit(stored_of(self.store)).line
        said: dict[str, Any] = {"known": self._importances(study, rows), "promotions": promoted, "audit": told}
        write_report(study, rows, self.folder, links=links, papers=False, **said)
        self._attached |= attach(self.tracker, study, self.folder, self._attached)
        self._seen = state
        self.drawn += 1

    def _importances(self, study: StudyRow, rows: list[TrialRow]) -> tuple[Importances, ...]:
        """Computed again only when another trial has reached its full length."""
        complete = [row.number for row in rows if row.state == "complete"]
        if self._known is None or self._known[0] != complete:
            self._known = (
                complete,
                importances(trials_of(study, rows), study.spec.dimensions(), also=study.spec.goal.calibrations),
            )
        return self._known[1]


def attach(tracker: Tracker, study: StudyRow, folder: Path, known: dict[str, str] | None = None) -> dict[str, str]:
    """Attach a report's files to the study's run, as `report/NAME`; `known`: name -> SHA-256 of what is there already.

    Returns the SHA-256 of every file.
    """
    found = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".md", ".html", ".json", ".png") and not path.name.startswith("."):
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
            if found[path.name] != (known or {}).get(path.name):
                tracker.log_file(study_key(study), path, f"report/{path.name}")
    return found


def links_of(tracker: Tracker, study: StudyRow, rows: list[TrialRow]) -> dict[str, str]:
    """Addresses of the runs in the MLflow UI that are known by now: `study`, and trials by their number."""
    keys = {"study": study_key(study), **{str(row.number): trial_key(study, row.number) for row in rows}}
    return {name: page for name, key in keys.items() if (page := tracker.run_page(key)) is not None}
