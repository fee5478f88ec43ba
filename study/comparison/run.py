"""Run a comparison on the study service: search, repeat with fresh seeds, measure on the final sets, report.

What is left to do is read from the study store and the kept measurements before every step, so a comparison that was
interrupted, or has finished, is simply run again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.checks.mlflow import require_mlflow
from infra.cluster.cluster import Cluster
from infra.provenance import provenance
from infra.services import Services
from infra.tracking.runs import Tracker
from study.comparison.file import Comparison
from study.comparison.record import UNMODIFIED, chosen, collect, kept_result, result_path
from study.comparison.report import comparison_table, write_comparison
from study.console import Clock, wide_console
from study.driver.messages import paused_line
from study.driver.run import run_study
from study.errors import StudyFailed, UserError
from study.search.projection import check_projection
from study.session import CLOSE_SECONDS, cluster_here, services_here
from study.spec.config import StudyConfig
from study.store.database import database_url
from study.store.lease import owner_identity
from study.store.store import StudyStore
from study.tracking import EXPERIMENT
from trainers.files import write_whole
from trainers.schema.records import Weights


@dataclass(frozen=True)
class Step:
    """One thing to do: a study to drive, or checkpoints (seed -> weights, None: unmodified CLIP) to measure."""

    label: str
    study: StudyConfig | None = None
    weights: Mapping[str, Mapping[str, Any] | None] | None = None


def compare_here(
    comparison: Comparison, home: Path, out: Path | None, *, as_json: bool = False, as_latex: bool = False
) -> int:
    """Do what is left of a comparison and write its report; the exit code. `as_json`: its record, the rest aside;
    `as_latex`: its tables for papers."""
    clock = Clock(aside=as_json or as_latex)
    database, folder = database_url(home), home / "compare" / comparison.name
    for study in comparison.searches.values():
        store = StudyStore(database, study.name)
        store.create(study)  # refuses another spec before anything is started
        check_projection(store)
    services = None
    if next_step(comparison, database, folder) is None:
        clock("everything has been run and measured already; writing the report")
    else:
        clock(f"comparison {comparison.name}: {len(comparison.searches)} methods; Ctrl-C pauses it")
        services = services_here(home, clock)
        require_mlflow(services, clock, experiment=EXPERIMENT)
        try:
            with cluster_here(clock) as cluster:
                left = _finish(comparison, database, folder, services, cluster, clock)
        except KeyboardInterrupt:
            left = "interrupted"
        if left:
            clock(paused_line(left, "the same command"))
            return 1
    record = collect(comparison, database, folder)
    path = write_comparison(record, out or folder / "report")
    page = _log(record, path.parent, services) if services else None
    if as_json:
        print(json.dumps({**record, "report": str(path), "mlflow_page": page}, indent=2))
        return 0
    if as_latex:
        print(path.with_suffix(".tex").read_text(encoding="utf-8"), end="")
        return 0
    console = wide_console()
    console.print()
    console.print(comparison_table(record))
    console.print(f"report: {path}")
    if page:
        console.print(f"MLflow: {page}")
    return 0


def _finish(
    comparison: Comparison, database: str, folder: Path, services: Services, cluster: Cluster, clock: Clock
) -> str:
    """Step by step until nothing is left; else why a study of it was paused or stopped."""
    while (step := next_step(comparison, database, folder)) is not None:
        clock(_progress(comparison, database, step))
        if step.study is None:
            _measure(comparison, step, folder, services.bucket, clock)
            continue
        _share_baseline(comparison, database, step.study)
        outcome = run_study(
            step.study, database=database, cluster=cluster, bucket=services.bucket, tracking_uri=services.mlflow_uri,
            say=clock,
        )  # fmt: skip
        if outcome.state != "finished":
            return f"study {step.study.name} is {outcome.state}: {outcome.message}"
    return ""


def _share_baseline(comparison: Comparison, database: str, study: StudyConfig) -> None:
    """The unmodified CLIP on the dev sets is the same for every study of the comparison: measured by the first."""
    known = StudyStore(database, comparison.shared().name).load().baseline
    StudyStore(database, study.name).take_baseline(owner_identity(), known)


def next_step(comparison: Comparison, database: str, folder: Path) -> Step | None:
    """What is to be done next; None when the comparison is complete."""
    repetitions: dict[str, StudyConfig] = {}
    for label, search in comparison.searches.items():
        store = StudyStore(database, search.name)
        if store.load().state != "finished":
            return Step(label, study=search)
        repetitions[label] = comparison.repetition(label, chosen(store).config)
        StudyStore(database, repetitions[label].name).create(repetitions[label])  # refuses other seeds at once
    for label, repetition in repetitions.items():
        if StudyStore(database, repetition.name).load().state != "finished":
            return Step(label, study=repetition)
    if kept_result(comparison, folder, UNMODIFIED, "", None) is None:
        return Step(UNMODIFIED, weights={"": None})
    for label, repetition in repetitions.items():
        trials = [trial for trial in StudyStore(database, repetition.name).trials() if trial.state == "complete"]
        if not trials:
            raise StudyFailed(f"every repetition of {label!r} failed; see `agft status {repetition.name}`")
        every = {str(trial.params["seed"]): trial.best and trial.best.model_dump() for trial in trials}
        missing = {
            seed: weights
            for seed, weights in every.items()
            if weights and kept_result(comparison, folder, label, seed, weights) is None
        }
        if missing:
            return Step(label, weights=missing)
    return None


def _progress(comparison: Comparison, database: str, step: Step) -> str:
    """One line: the step, how many runs are done, and when the rest may be done at the pace so far."""
    seconds, done = 0.0, 0
    for study in comparison.searches.values():
        for name in (study.name, f"{study.name}-seeds"):
            try:
                row, trials = StudyStore(database, name).load(), StudyStore(database, name).trials()
            except UserError:
                continue  # not created yet
            seconds += row.driven_seconds
            done += sum(trial.finished for trial in trials)
    total = sum(study.budget.trials + len(comparison.seeds) for study in comparison.searches.values())
    left = f", about {max(1, round(seconds / done * (total - done) / 60))} min left" if done and done < total else ""
    if step.study is not None:
        what = f"study {step.study.name}"
    else:
        number = len(step.weights or {})
        sets = ", ".join(comparison.shared().data.final)
        what = f"final sets {sets}: measuring {step.label}" + (f", {number} checkpoints" if number > 1 else "")
    return f"== {what}; {done} of {total} runs done{left}"


def _measure(comparison: Comparison, step: Step, folder: Path, bucket: str, clock: Clock) -> None:
    """Measure the step's checkpoints on the final sets; one file each, written whole."""
    from study.evaluation.executor import StudyExecutor

    spec = comparison.shared()
    assert step.weights is not None
    suite = spec.evaluate.final.suite("comparison", spec.data.final)
    models = {
        seed: None if kept is None else Weights(uri=kept["uri"], sha256=kept["sha256"])
        for seed, kept in step.weights.items()
    }
    with StudyExecutor(spec.model, spec.resources, bucket, clock) as executor:
        found = executor.measure(suite, models, f"  measuring {step.label}")
    for seed, (result, _) in found.items():
        path = result_path(comparison, folder, step.label, seed, step.weights[seed])
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = {"result": result, "measured_ms": int(time.time() * 1000), "provenance": provenance()}
        write_whole(path, json.dumps(kept, indent=1).encode())
        name = f"{step.label} seed {seed}" if seed else step.label
        clock(f"  {name:<24} clean {result['clean_accuracy']:6.1%}  robust {result['robust_accuracy']:6.1%}")


def _log(record: Mapping[str, Any], folder: Path, services: Services) -> str:
    """The report in MLflow, as a run of its own beside the studies; where to look."""
    tracker = Tracker(services.mlflow_uri, EXPERIMENT)
    key = f"comparison/{record['name']}:{record['created_ms']}"
    tracker.ensure_run(
        key, name=record["name"], params={"methods": ", ".join(record["methods"]), "reference": record["reference"]},
        tags={"agft.comparison": record["name"]}, start_time_ms=record["created_ms"],
    )  # fmt: skip
    for path in sorted(folder.glob("comparison*")):
        tracker.log_file(key, path, f"report/{path.name}")
    tracker.finish(key, "FINISHED", int(time.time() * 1000))
    tracker.flush(CLOSE_SECONDS)
    page = tracker.page()
    tracker.close(1.0)
    return page
