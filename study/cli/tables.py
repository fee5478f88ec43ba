"""Tables of trials and studies, as the terminal shows them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from study.console import duration, percent
from study.driver.messages import progress
from study.results.ranking import Measurement, trial_table
from study.results.status import ALL_DONE
from study.spec.config import StudyConfig
from study.spec.dimension import short, shown
from study.store.rows import TrialRow
from trainers.schema.records import Sign
from trainers.schema.training import Goal

NOTE_WIDTH = 16  # what a note is folded into at least


def fitted(table: Table, width: int | None, spare: Sequence[str]) -> Table:
    """Without as many of the `spare` columns, in their order, as do not fit into `width`; a caption names them."""
    left_out: list[str] = []
    for name in spare:
        if width is None or _natural_width(table) <= width:
            break
        table.columns = [column for column in table.columns if column.header != name]
        left_out.append(name.replace("\n", " "))
    for place, column in enumerate(table.columns):
        column._index = place
    if left_out:
        table.caption = f"left out, for the terminal's width: {', '.join(left_out)}; --json has all"
        table.caption_justify = "left"
    return table


def _natural_width(table: Table) -> int:
    widest = [
        max(len(line) for cell in (column.header, *column.cells) for line in str(cell).splitlines() or [""])
        for column in table.columns
    ]
    last = table.columns[-1].header == "note"
    return sum(widest[:-1]) + (min(widest[-1], NOTE_WIDTH) if last else widest[-1]) + 3 * len(widest) + 1


def trials_table(
    spec: StudyConfig, trials: Sequence[TrialRow], goal: Goal, *, token: int | None = None,
    signs: Mapping[int, Sign] | None = None, width: int | None = None,
) -> Table:  # fmt: skip
    """All trials, the best first; accuracies are those of the trial's best epoch on the dev sets.

    `token`: of the driver that drives now, if any; `signs`: how far its trials are inside an epoch; `width`: of the
    terminal, where one looks.
    """
    table = Table(title=f"study {spec.name}: {len(trials)} trials, best first (dev sets)", title_justify="left")
    also = spec.goal.calibrations
    for name in ("trial", "state", "epochs", "clean", "robust", *(name.replace("_", "\n") for name in also)):
        table.add_column(name, justify="right" if name != "state" else "left", no_wrap=True)
    paths = list(spec.search)
    names = [short(path) for path in paths]
    for name in names:
        table.add_column(name, justify="right")
    table.add_column("note")
    for row in trial_table(trials, goal, token=token):
        under_way = (signs or {}).get(row["number"])
        note = row["failure_kind"] or row["reason"] or ("" if row["feasible"] in (True, None) else "below a floor")
        table.add_row(
            str(row["number"]), row["state"], f"{row['epochs']}/{row['of_epochs'] or spec.train.epochs}",
            percent(row["clean_accuracy"]), percent(row["robust_accuracy"]), *(percent(row[name]) for name in also),
            *(shown(path, row["params"].get(path, "-")) for path in paths),
            progress(under_way) if under_way and row["state"] == "running" else note,
        )  # fmt: skip
    return fitted(table, width, names[::-1])


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


def failure_lines(trials: Sequence[TrialRow]) -> list[str]:
    """Why trials failed, a line each: the kind, and the last line of what was raised."""
    found = []
    for trial in trials:
        if trial.state == "failed":
            lines = (trial.stop_reason or "").strip().splitlines() or ["nothing more is known"]
            found.append(f"trial {trial.number} failed, {trial.failure_kind}: {lines[-1]}")
    return found


def advice(status: dict[str, Any]) -> str:
    """What to do about the study's state; empty when there is nothing to do."""
    name, driver = status["study"], status["driver"]
    where = f"its driver on {driver['host']} (process {driver['pid']})" if driver else "its driver"
    silent = status["silent_seconds"] or 0
    how = "is gone"
    if silent:
        how = f"has been silent for {duration(silent)}: the process, its node or its cluster is gone"
    texts = {
        "queued": "no driver has come yet: `agft submit FILE` starts one on a cluster, `agft run FILE` here",
        "deleting": f"`agft delete {name}` goes on with deleting it",
        "interrupted": f"{where} {how}. Nothing is lost: `agft resume {name}` goes on here, "
        "`agft submit FILE` on a cluster",
        "paused": f"`agft resume {name}` goes on",
        "failed": f"`agft logs {name}` shows why; `agft resume {name}` tries again",
    }
    left = status["counts"]["queued"]
    if status["state"] == "finished" and left and status["message"] == ALL_DONE:  # extended, or a trial was dropped
        return f"since then {left} more are wanted: `agft resume {name}` runs them"
    return texts.get(status["state"], "")


SPARE = ("device\nhours", "failed", "stopped\nearly", "queued", "best\nclean", "running", "left")


def studies_table(statuses: Sequence[dict[str, Any]], *, width: int | None = None) -> Table:
    """One line a study: state, how far, best, what it cost, where it is driven; `width`: of the terminal, if any."""
    table = Table(title="studies, newest first", title_justify="left")
    for name in ("study", "state"):
        table.add_column(name, overflow="fold")
    for name in ("done", "running", "queued", "stopped\nearly", "failed", "best\nclean", "best\nrobust", "left",
                 "device\nhours"):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("driver", overflow="fold")
    for status in statuses:
        count, best = status["counts"], status["best"] or {}
        eta = status["eta_seconds"]
        table.add_row(
            status["study"], status["state"], f"{count['done']}/{status['wanted']}",
            *(str(count[name]) for name in ("running", "queued", "stopped_early", "failed")),
            percent(best.get("clean_accuracy")), percent(best.get("robust_accuracy")),
            "-" if eta is None else duration(eta), f"{status['device_hours']:.2f}",
            status["driver"]["host"] if status["driver"] else "-",
        )  # fmt: skip
    return fitted(table, width, SPARE)


def attempts_table(trials: Sequence[TrialRow], token: int, now: float, *, live: bool) -> Table:
    """Every start of every trial, if there was a second one anywhere: by which driver, how long, how it ended."""
    table = Table(title="attempts", title_justify="left")
    for name in ("trial", "attempt", "driver", "minutes", "device minutes"):
        table.add_column(name, justify="right")
    for name in ("host", "outcome"):
        table.add_column(name)
    for trial in trials:
        for place, attempt in enumerate(sorted(trial.attempts, key=lambda a: a.token), start=1):
            open_ = attempt.ended_ms is None
            runs = open_ and live and attempt.token == token
            end = now if runs else None if open_ else (attempt.ended_ms or 0) / 1000
            table.add_row(
                str(trial.number), str(place), f"a{attempt.token:06d}",
                "-" if end is None else f"{(end - attempt.started_ms / 1000) / 60:.1f}",
                f"{attempt.device_seconds / 60:.1f}", (attempt.provenance or {}).get("hostname") or "-",
                attempt.outcome or ("running" if runs else "lost with its driver"),
            )  # fmt: skip
    return table
