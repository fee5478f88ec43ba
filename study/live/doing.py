"""What the live page's buttons do: the same as the commands of their names."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from infra.services import DEFAULT_BUCKET
from infra.stack.processes import spawn
from study.control.lifecycle import drop_trial, extend_study, pause_study, stop_study
from study.control.logs import print_logs
from study.errors import UserError
from study.session import running_services
from study.store.store import StudyStore
from study.tracking import tell_mlflow

TAIL = 60_000  # characters of a log
BY = "from the page"


class Doing:
    """Does what is asked, with this home; drivers and promotions are started as processes of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def do(self, store: StudyStore, action: str, asked: Mapping[str, int]) -> str:
        """The sentence to say; `UserError` where it cannot be done."""
        done: dict[str, Callable[[], str]] = {
            "pause": lambda: pause_study(store),
            "resume": lambda: self._start(store, "resume", store.name),
            "stop": lambda: self._shown(store, stop_study(store)),
            "extend": lambda: extend_study(store, trials=asked.get("trials", 0), hours=0.0, gpu_hours=0.0),
            "drop": lambda: self._shown(store, drop_trial(store, _trial(asked), BY)),
            "promote": lambda: self._start(
                store, "promote", store.name, *(("--trial", str(asked["trial"])) if "trial" in asked else ())
            ),
        }
        if action not in done:
            raise UserError(f"{action!r}: no such button; there are {', '.join(done)}")
        return done[action]()

    def log(self, store: StudyStore) -> str:
        """The end of what drivers of the study printed, here or wherever they ran; nothing is started for it."""
        study = store.load()
        files = sorted((self.home / "logs").glob(f"*-{study.slug}*.log"), key=lambda path: path.stat().st_mtime)
        if files:
            return "".join(path.read_text(encoding="utf-8", errors="replace") for path in files[-3:])[-TAIL:]
        services = running_services(self.home)
        if services is None:
            return f"No driver has run here, and the embedded services are not up: agft logs {store.name}"
        parts: list[str] = []
        print_logs(store, services.bucket or DEFAULT_BUCKET, parts.append)
        return "".join(parts)[-TAIL:] or "No driver of this study has written anything yet."

    def _shown(self, store: StudyStore, said: str) -> str:
        """MLflow is told as the command tells it."""
        more: list[str] = []
        tell_mlflow(store, self.home, more.append)
        return " ".join([f"{said}.", *more])

    def _start(self, store: StudyStore, command: str, *arguments: str) -> str:
        """`agft COMMAND` in a session of its own: it outlives the page's server, and Ctrl-C there is not its."""
        if command == "resume":
            store.refuse_if_driven_here()
        file = self.home / "logs" / f"ui-{store.load().slug}.log"
        called = [sys.executable, "-c", "from study.cli.main import main; main()", command, *arguments]
        process, _ = spawn(
            called, mark=f"ui:{store.name}", environment={**os.environ, "AGFT_HOME": str(self.home)},
            folder=self.home, log=file,
        )  # fmt: skip
        return f"started: agft {' '.join([command, *arguments])} (process {process}); what it says is in the log below"


def _trial(asked: Mapping[str, int]) -> int:
    if "trial" not in asked:
        raise UserError("which trial? A button of a trial says its number")
    return asked["trial"]
