"""What a person reads: lines of progress with the time, and tables."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from study.config import StudyConfig
from study.results import Measurement, trial_table
from study.space import shown
from study.store import TrialRow
from trainers.config import Goal

__all__ = ["Clock", "accuracy_table", "percent", "trials_table", "wide_console"]


class Clock:
    """Prints lines that begin with the time since it was made. `clock("...")`."""

    def __init__(self) -> None:
        self.started = time.monotonic()

    def __call__(self, text: str) -> None:
        seconds = int(time.monotonic() - self.started)
        print(f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}", flush=True)


def wide_console() -> Console:
    """Standard output; never narrower than a table needs when it goes to a file."""
    return Console(width=None if sys.stdout.isatty() else 150, highlight=False, soft_wrap=False)


def percent(value: float | None) -> str:
    """`46.6 %`, or a dash."""
    return "-" if value is None else f"{100 * value:.1f} %"


def trials_table(spec: StudyConfig, trials: Sequence[TrialRow], goal: Goal, *, token: int | None = None) -> Table:
    """All trials, the best first; accuracies are those of the trial's best epoch on the dev sets.

    `token`: of the driver that drives now, if any.
    """
    table = Table(title=f"study {spec.name}: {len(trials)} trials, best first (dev sets)", title_justify="left")
    for name in ("trial", "state", "epochs", "clean", "robust"):
        table.add_column(name, justify="right" if name != "state" else "left", no_wrap=True)
    paths = list(spec.search)
    for path in paths:
        table.add_column(path.removeprefix("method.").removeprefix("train.optimizer."), justify="right")
    table.add_column("note")
    for row in trial_table(trials, goal, token=token):
        note = row["failure_kind"] or row["reason"] or ("" if row["feasible"] in (True, None) else "below a floor")
        table.add_row(
            str(row["number"]), row["state"], f"{row['epochs']}/{row['of_epochs'] or spec.train.epochs}",
            percent(row["clean_accuracy"]), percent(row["robust_accuracy"]),
            *(shown(path, row["params"].get(path, "-")) for path in paths), note,
        )  # fmt: skip
    return table


def accuracy_table(title: str, rows: dict[str, Measurement]) -> Table:
    """Models by line, clean and robust accuracy: means, then every set."""
    table = Table(title=title, title_justify="left")
    table.add_column("model")
    table.add_column("clean", justify="right")
    table.add_column("robust", justify="right")
    names = list(next(iter(rows.values()))["datasets"])
    for name in names:
        table.add_column(f"{name}\nclean / robust", justify="right")
    for label, result in rows.items():
        cells = []
        for name in names:
            scores = list(result["datasets"][name].values())
            robust = sum(score["robust_accuracy"] for score in scores) / len(scores)
            cells.append(f"{100 * scores[0]['clean_accuracy']:.1f} / {100 * robust:.1f}")
        table.add_row(label, percent(result["clean_accuracy"]), percent(result["robust_accuracy"]), *cells)
    return table
