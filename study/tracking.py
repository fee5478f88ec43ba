"""The study as MLflow shows it: a projection of the store, safe to repeat as a whole.

A study is a parent run, a trial a nested child. What a point means and when it was measured comes from the stored
record, so shipping a study again adds nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

from infra.errors import ServiceError, UserError
from infra.tracking.calls import Point
from infra.tracking.runs import Tracker
from study.markdown import as_code, escaped
from study.results.ranking import best_trial
from study.session import running_services
from study.spec.dimension import shown
from study.store.rows import Attempt, StudyRow, TrialRow
from study.store.store import StudyStore
from trainers.data import safe_name
from trainers.schema.records import EpochRecord, Score
from trainers.schema.training import ACCURACIES, CALIBRATIONS

EXPERIMENT = "agft"
STATUS: dict[str, Literal["FINISHED", "KILLED", "FAILED"]] = {
    "complete": "FINISHED",
    "pruned": "FINISHED",  # as the study's rule wants it; a red cross would look like a failure
    "failed": "FAILED",
    "dropped": "KILLED",
}
# Few and well-named: what a person compares between trials. Everything else is in the trial's JSON artifacts.
METRICS = (
    "clean_accuracy", "robust_accuracy", "best_clean_accuracy", "best_robust_accuracy", "train_loss", "lr",
    "images_per_second", "grad_norm",
)  # fmt: skip
MEASURED = (*CALIBRATIONS, *(f"best_{name}" for name in CALIBRATIONS))  # where they were: not in older records


# A run's name begins with the trial's number and what came of it: the list of runs shows no more than its beginning.
OUTCOMES = {"complete": "full length", "pruned": "stopped early"}
BEST = "★ best"


def run_name(study: StudyRow, trial: TrialRow, *, best: bool = False) -> str:
    """`007 full length · demo-001`; the best trial's has a star."""
    return f"{trial.number:03d} {BEST if best else OUTCOMES.get(trial.state, trial.state)} · {study.name}"


def study_key(study: StudyRow) -> str:
    """Names the parent run for ever; a deleted and recreated study has another."""
    return f"{study.name}:{study.created_ms}"


def trial_key(study: StudyRow, number: int) -> str:
    """Names a trial's run."""
    return f"{study_key(study)}/{number}"


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted paths to text, as MLflow's params are."""
    found: dict[str, str] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            found.update(flat(value, f"{prefix}{key}."))
        else:
            values = value if isinstance(value, list | tuple) else [value]
            found[f"{prefix}{key}"] = ", ".join(_text(f"{prefix}{key}", each) for each in values)
    return found


def _text(path: str, value: Any) -> str:
    """Floats short enough for a column; their every digit is in config.json."""
    return shown(path, value) if path.endswith(".eps") or not isinstance(value, float) else f"{value:.6g}"


def project_study(tracker: Tracker, study: StudyRow, *, reopen: bool = True) -> None:
    """The parent run: what is searched, on what, and how good the unmodified CLIP is. `reopen`: it goes on."""
    spec = study.spec
    fixed = {**spec.base(), "data": spec.data.model_dump(mode="json")}
    for part in ("evaluate", "goal"):
        fixed.pop(part)
    params = {k: v for k, v in flat(fixed).items() if not any(f"{k}.".startswith(f"{path}.") for path in spec.search)}
    params |= {f"search.{path}": json.dumps(entry) for path, entry in spec.search.items()}
    params |= {
        "goal": f"max {', '.join(spec.goal.metrics or (spec.goal.metric,))}",
        "budget.trials": str(spec.budget.trials),
    }
    params |= {f"goal.{name}": floor for name, floor in spec.goal.subject_to.items()}
    tracker.ensure_run(
        study_key(study),
        name=spec.name,
        parent=None,
        params=params,
        tags={"agft.study": spec.name, "agft.spec_hash": study.spec_hash, **_code_tags(study.provenance)},
        start_time_ms=study.created_ms,
        reopen=reopen,
    )
    tracker.log_text(study_key(study), json.dumps(spec.model_dump(mode="json"), indent=2), "study.json")
    tracker.share_view(study_key(study), lambda run_id: first_view(study, run_id))
    if study.provenance:
        tracker.log_text(study_key(study), json.dumps(study.provenance, indent=2), "provenance.json")
    if study.baseline:
        points = [
            Point(f"clip_{name}", getattr(study.baseline, name), 0, study.created_ms)
            for name in (*ACCURACIES, *CALIBRATIONS)
            if getattr(study.baseline, name) is not None
        ]
        tracker.log(study_key(study), points)
        tracker.log_text(study_key(study), study.baseline.model_dump_json(indent=2), "unmodified-clip.json")


def first_view(study: StudyRow, run_id: str) -> dict[str, Any]:
    """How the list of runs opens: this study's trials, the best first, with what was searched and what came of it.

    The names are those of the state that MLflow's own "share" button stores.
    """
    shown_metrics = (
        "best_robust_accuracy",
        "best_clean_accuracy",
        *(f"best_{n}" for n in study.spec.goal.calibrations),
    )
    columns = [f"metrics.`{name}`" for name in shown_metrics] + [f"params.`{path}`" for path in study.spec.search]
    columns += ["tags.`agft.state`", "tags.`agft.stop_reason`"]
    wanted = study.spec.goal.metrics or (study.spec.goal.metric,)
    return {
        "searchFilter": f"tags.`agft.study` = '{study.name}'", "orderByKey": f"metrics.`best_{wanted[0]}`",
        "orderByAsc": False, "startTime": "ALL", "lifecycleFilter": "Active", "modelVersionFilter": "All Runs",
        "datasetsFilter": [], "selectedColumns": columns, "columnOrder": columns, "runsExpanded": {run_id: True},
    }  # fmt: skip


def project_best(
    tracker: Tracker, study: StudyRow, trials: Sequence[TrialRow], *, newest: int | None = None
) -> None:  # fmt: skip
    """On the parent run: its description, and the best full-length trial after each that finished, in that order.

    `newest`: the number of the trial that has just finished, whose point alone is missing; None: all are sent.
    """
    goal = study.goal
    assert goal is not None, "no trial starts before the unmodified model is measured"
    done = sorted((trial for trial in trials if trial.state == "complete"), key=lambda t: (t.ended_ms or 0, t.number))
    points = []
    best: TrialRow | None = None
    for step, trial in enumerate(done, start=1):
        best = best_trial([trial] if best is None else [best, trial], goal)
        if best is not None and best.last is not None and newest in (None, trial.number):
            for name in (
                "best_clean_accuracy",
                "best_robust_accuracy",
                *(f"best_{n}" for n in study.spec.goal.calibrations),
            ):
                points.append(Point(name, getattr(best.last, name), step, trial.ended_ms or trial.started_ms))
    tracker.log(study_key(study), points)
    tracker.describe(study_key(study), lambda page: describe_study(study, trials, page))


def mark_best(
    tracker: Tracker, study: StudyRow, trials: Sequence[TrialRow], *, newest: int | None = None
) -> None:  # fmt: skip
    """The best trial's name says so in the list of runs, once all of these trials have a run.

    `newest`: as in `project_best`; the trial that was the best before loses its mark.
    """
    assert study.goal is not None
    best = best_trial(trials, study.goal)
    if best is None or newest not in (None, best.number):
        return
    before = best_trial([trial for trial in trials if trial is not best], study.goal) if newest is not None else None
    for trial in (best,) if before is None else (before, best):
        named = {"mlflow.runName": run_name(study, trial, best=trial is best)}
        tracker.set_tags(trial_key(study, trial.number), named | {"agft.best": str(trial is best).lower()})


# Of the parent run; a study in any other state goes on.
ENDED: dict[str, Literal["FINISHED", "KILLED", "FAILED"]] = {
    "finished": "FINISHED",
    "stopped": "KILLED",
    "failed": "FAILED",
}


def end_study(tracker: Tracker, study: StudyRow, *, when_ms: int | None = None) -> None:
    """Close the parent run of a study that is over, or has failed; its next driver opens it again."""
    if study.state in ENDED:
        tracker.finish(study_key(study), ENDED[study.state], when_ms or int(time.time() * 1000))


def describe_study(study: StudyRow, trials: Sequence[TrialRow], page: Callable[[str], str | None]) -> str:
    """Markdown of the parent run's page. `page(key)` is the address of a run in the UI, None while it is unknown."""
    spec = study.spec
    floors = "; ".join(f"{name} {floor}" for name, floor in spec.goal.subject_to.items()) or "no floors"
    wanted = " and ".join(spec.goal.metrics or (spec.goal.metric,))
    dev = ", ".join(map(escaped, spec.data.dev))
    lines = [
        f"**{spec.name}**: {spec.budget.trials} trials of `{', '.join(spec.blocks())}` on {as_code(spec.model.arch)}, "
        f"fine-tuned on {as_code(spec.data.train)}, searched for the best {wanted} ({floors}) on {dev}."
    ]
    links = []  # near the top: the UI folds what is long
    if own := page(study_key(study)):
        links.append(f"[interactive report]({own}/artifacts/report/report.html)")
    if found := next((row.latest.uri for row in trials if row.latest), None):
        links.append(f"checkpoints: `{found.partition('/trials/')[0]}/trials/NUMBER/`")
    links.append(f"`agft report {spec.name}`, `agft status {spec.name}`")
    lines.append(" · ".join(links))
    if study.baseline:
        lines.append(_accuracies(study, trials, page))
    lines.append("Nested runs are trials, named by number and outcome: FINISHED = full length or stopped early, "
                 "KILLED = dropped, FAILED = see `agft.failure_kind`.")  # fmt: skip
    return "\n\n".join(lines)


def _accuracies(study: StudyRow, trials: Sequence[TrialRow], page: Callable[[str], str | None]) -> str:
    """A table: the best trial beside the unmodified CLIP, on the dev sets."""
    goal, clip = study.goal, study.baseline
    assert goal is not None
    assert clip is not None
    best = best_trial(trials, goal)
    also = study.spec.goal.calibrations
    heads = ("dev sets", "robust", "clean", *(name.replace("_", " ") for name in also))
    rows = [f"| {' | '.join(heads)} |", f"| ---{' | ---:' * (len(heads) - 1)} |"]
    if best is not None and best.last is not None:
        own = page(trial_key(study, best.number))
        name = f"[trial {best.number}]({own}) (best)" if own else f"trial {best.number} (best)"
        more = "".join(f" {best.last.at_best(name):.1%} |" for name in also)
        rows.append(f"| {name} | {best.last.best_robust_accuracy:.1%} | {best.last.best_clean_accuracy:.1%} |{more}")
    more = "".join(f" {getattr(clip, name):.1%} |" for name in also)
    rows.append(f"| unmodified CLIP | {clip.robust_accuracy:.1%} | {clip.clean_accuracy:.1%} |{more}")
    return "\n".join(rows)


def project_trial(tracker: Tracker, study: StudyRow, trial: TrialRow) -> None:
    """A trial's run as it starts or goes on."""
    tracker.ensure_run(
        trial_key(study, trial.number),
        name=run_name(study, trial),
        parent=study_key(study),
        params=flat(trial.config),
        tags={
            "agft.study": study.name,
            "agft.optuna_number": str(trial.number),
            **attempt_tags(trial.attempts),
        },
        start_time_ms=trial.started_ms,
        reopen=not trial.finished,
    )


def attempt_tags(attempts: Sequence[Attempt]) -> dict[str, str]:
    """Where and with what the newest attempt that reported ran: code, versions, machine, what it started from."""
    tags = {"agft.attempts": str(len(attempts))}
    found = next((attempt.provenance for attempt in reversed(attempts) if attempt.provenance), None)
    if found is None:
        return tags
    devices = found.get("devices") or ["CPU"]
    tags |= _code_tags(found) | {"agft.device": ", ".join(dict.fromkeys(devices))}
    tags["agft.host"] = str(found.get("hostname"))
    tags["agft.python"] = str(found.get("python"))
    tags["agft.versions"] = ", ".join(f"{name} {version}" for name, version in found.get("packages", {}).items())
    return tags | {f"agft.{name}.sha256": value for name, value in _named_inputs(found).items()}


def _code_tags(provenance: Mapping[str, Any] | None) -> dict[str, str]:
    code = (provenance or {}).get("code") or {}
    known = {"agft.revision": code.get("revision"), "agft.dirty": code.get("dirty")}
    return {name: str(value).lower() for name, value in known.items() if value is not None}


def _named_inputs(provenance: Mapping[str, Any]) -> dict[str, str]:
    """`weights`, `data.train`, `data.dev.0`, ... -> SHA-256."""
    inputs = provenance.get("inputs") or {}
    return {name if name == "weights" else f"data.{name}": value for name, value in inputs.items()}


def _inputs(trial: TrialRow) -> list[tuple[str, str, str]]:
    """(dataset, SHA-256, role) of every dataset that the trial read."""
    named = {
        name: value for attempt in trial.attempts for name, value in _named_inputs(attempt.provenance or {}).items()
    }
    train, dev = trial.config.get("data", {}).get("train"), trial.config.get("evaluate", {}).get("datasets", ())
    names = {"data.train": train, **{f"data.dev.{i}": name for i, name in enumerate(dev)}}
    return [(str(names[role]), named[role], role.split(".")[1]) for role in names if role in named]


def project_epochs(tracker: Tracker, study: StudyRow, number: int, records: Sequence[EpochRecord]) -> None:
    """Curves: one point a metric and epoch, at the time of the measurement."""
    points = []
    for record in records:
        values = {name: float(getattr(record, name)) for name in METRICS}
        values |= {name: value for name in MEASURED if (value := getattr(record, name)) is not None}
        values |= {f"robust_accuracy/{safe_name(name)}": _mean_robust(found) for name, found in record.datasets.items()}
        values |= {f"system/{name}": value for name, value in record.system.items()}
        points += [Point(name, value, record.epoch, record.timestamp_ms) for name, value in values.items()]
    tracker.log(trial_key(study, number), points)


def _mean_robust(scores: Mapping[str, Score]) -> float:
    return sum(score.robust_accuracy for score in scores.values()) / len(scores)


def project_outcome(tracker: Tracker, study: StudyRow, trial: TrialRow) -> None:
    """How a finished trial ended, and where its weights are."""
    key = trial_key(study, trial.number)
    tags = {"agft.state": trial.state, "mlflow.runName": run_name(study, trial), "agft.best": "false",
            "mlflow.note.content": describe_trial(trial), **attempt_tags(trial.attempts)}  # fmt: skip
    for role in ("latest", "best"):
        for name, value in getattr(trial, role) or ():
            tags[f"agft.{role}.{name}"] = str(value)
    if trial.stop_reason:
        tags["agft.stop_reason"] = trial.stop_reason[:4000]
    if trial.failure_kind:
        tags["agft.failure_kind"] = trial.failure_kind
    tracker.set_tags(key, tags)
    tracker.log_text(key, json.dumps(trial.config, indent=2), "config.json")
    tracker.log_text(key, json.dumps([asdict(attempt) for attempt in trial.attempts], indent=2), "attempts.json")
    if inputs := _inputs(trial):
        tracker.log_inputs(key, inputs)
        tracker.log_inputs(study_key(study), inputs)
    tracker.log_text(
        key, json.dumps([record.model_dump(mode="json") for record in trial.epochs], indent=2), "epochs.json"
    )
    tracker.finish(key, STATUS[trial.state], trial.ended_ms or trial.started_ms)


def describe_trial(trial: TrialRow) -> str:
    """Markdown of a finished trial's page: how it ended, and why."""
    last, planned = trial.last, trial.config.get("train", {}).get("epochs")
    said = f"**Trial {trial.number}: {OUTCOMES.get(trial.state, trial.state)}**"
    if last is not None:
        said += f", epoch {last.epoch} of {planned or last.epoch}; best epoch {last.best_epoch}: "
        said += f"robust {last.best_robust_accuracy:.1%}, clean {last.best_clean_accuracy:.1%} (dev sets)"
    why = [text for text in (trial.failure_kind, trial.stop_reason) if text]
    return "\n\n".join([said + ".", *([escaped(": ".join(why))[:2000]] if why else [])])


def project_all(tracker: Tracker, study: StudyRow, trials: Sequence[TrialRow]) -> None:
    """The study and these trials as they are stored; sending what is there adds nothing."""
    project_study(tracker, study, reopen=False)
    for trial in trials:
        project_trial(tracker, study, trial)
        project_epochs(tracker, study, trial.number, trial.epochs)
        if trial.finished:
            project_outcome(tracker, study, trial)


def replay_of(store: StudyStore) -> Callable[[Tracker], None]:
    """Tells a tracker all that MLflow is to show of a study, as it is stored then."""

    def replay(tracker: Tracker) -> None:
        study, trials = store.load(), store.trials()
        project_all(tracker, study, trials)
        if study.goal is not None:
            project_best(tracker, study, trials)
            mark_best(tracker, study, trials)

    return replay


# MLflow's side of what is done to a study that nobody drives: without it a stopped study would look alive there.
#
# A study that is driven is shown by its driver; one whose MLflow is away is shown by its next driver.

PATIENCE_SECONDS = 20.0


def tell_mlflow(store: StudyStore, home: Path, say: Callable[[str], None]) -> None:
    """Show the study's ended trials and its own end as they are stored; nothing is started for it, nothing raised."""
    study, trials = store.load(), store.trials()
    if study.lease_seconds > 0 or study.baseline is None:
        return
    try:
        services = running_services(home)
    except (UserError, ServiceError) as error:
        say(f"MLflow was not told: {error}")
        return
    if services is None:
        return
    tracker = Tracker(services.mlflow_uri, EXPERIMENT)
    project_all(tracker, study, [row for row in trials if row.finished])
    project_best(tracker, study, trials)
    mark_best(tracker, study, trials)
    end_study(tracker, study)
    if lacking := untold(tracker, tracker.close(PATIENCE_SECONDS)):
        say(f"MLflow {lacking}; it is told by the study's next driver")


def untold(tracker: Tracker, left: int) -> str:
    """What MLflow has not got of what a tracker was told, of which `left` operations wait, and why; '' if nothing."""
    lacking = left + len(tracker.dropped)
    if not lacking:
        return ""
    why = f"refused: {tracker.dropped[0]}" if tracker.dropped else tracker.why_waiting or "it does not answer"
    return f"has not got {lacking} records ({why})"
