"""What must hold when a study has ended, whatever happened to it on the way: in store, S3, Optuna and MLflow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import optuna

from infra import storage
from infra.errors import ServiceError
from infra.tracking.calls import connect
from study.artifacts.checkpoints import scratch_prefix
from study.audit.audit import audit
from study.store.archive import stored_of
from study.store.rows import StudyRow, TrialRow
from study.tracking import EXPERIMENT, study_key, trial_key
from tests.faults.stage import Stage
from tests.support.worlds import found

IN_OPTUNA = {"complete": "COMPLETE", "pruned": "PRUNED", "failed": "FAIL"}
IN_MLFLOW = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}


def broken(stage: Stage, reference: list[dict[str, Any]]) -> list[str]:
    """Every violation, in words. `reference`: what the same study finds undisturbed (`tests.support.worlds.found`)."""
    rows, study = stage.store.trials(), stage.study()
    parts = (
        in_store(stage, study, rows, reference), in_s3(stage, study, rows), in_optuna(stage, study, rows),
        in_mlflow(stage, study, rows),
    )  # fmt: skip
    return [violation for part in parts for violation in part]


def in_store(stage: Stage, study: StudyRow, rows: list[TrialRow], reference: list[dict[str, Any]]) -> Iterator[str]:
    """The study has ended; no trial lost or doubled, each epoch's record once, the same proposals and verdicts."""
    if (study.state, study.lease_owner) != ("finished", None):
        yield f"the study is {study.state}, its lease held by {study.lease_owner}"
    if [row.number for row in rows] != list(range(stage.trials)):
        yield f"trials lost or doubled: {[row.number for row in rows]}"
    for row in rows:
        if [record.epoch for record in row.epochs] != list(range(1, len(row.epochs) + 1)):
            yield f"trial {row.number}: epochs lost or doubled: {[record.epoch for record in row.epochs]}"
        if row.state == "failed":
            yield f"trial {row.number}: failed ({row.failure_kind}): {' '.join((row.stop_reason or '').split())[-200:]}"
    for ours, theirs in zip(found(stage.store), reference, strict=False):
        if unlike := [key for key in theirs if ours[key] != theirs[key]]:
            yield f"trial {ours['number']}: not as in an undisturbed study: {', '.join(unlike)}"
    told = audit(stored_of(stage.store))
    if not told.follows:
        yield f"audit: {told.line}"


def in_s3(stage: Stage, study: StudyRow, rows: list[TrialRow]) -> Iterator[str]:
    """Checkpoints on record are there, with the bytes that they had; Ray's own files are gone."""
    for row in rows:
        for role in ("latest", "best"):
            kept = getattr(row, role)
            try:
                digest = storage.hash_object(kept.uri) if kept else ""
            except ServiceError as error:
                digest = str(error)
            if kept is None or digest != kept.sha256:
                yield f"trial {row.number}: {role} is not what is on record: {digest[:200] or 'nothing is'}"
    if left := storage.list_objects(scratch_prefix(stage.services.bucket, study.slug)):
        yield f"{len(left)} objects left in scratch"


def in_optuna(stage: Stage, study: StudyRow, rows: list[TrialRow]) -> Iterator[str]:
    """Optuna's tables say the same of every trial."""
    told = optuna.load_study(study_name=study.optuna_name, storage=stage.database).get_trials()
    expected = [(row.number, row.params, IN_OPTUNA.get(row.state)) for row in rows]
    seen = [(trial.number, dict(trial.params), trial.state.name) for trial in told]
    if seen != expected:
        unlike = [one[0] for one, other in zip(expected, seen, strict=False) if one != other]
        yield f"Optuna's tables: {len(seen)} trials for {len(expected)}, unlike {unlike}"


def in_mlflow(stage: Stage, study: StudyRow, rows: list[TrialRow]) -> Iterator[str]:
    """One run for the study and one for each trial, with its end and one point for each epoch."""
    client = connect(stage.services.mlflow_uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    query = f"tags.`agft.study` = '{study.name}'"
    runs = client.search_runs([experiment.experiment_id], query, max_results=1000) if experiment else []
    keys = Counter(run.data.tags["agft.trial_key"] for run in runs)
    if keys != Counter([study_key(study), *(trial_key(study, row.number) for row in rows)]):
        yield f"MLflow: runs lost or doubled: {len(rows) + 1} expected, {sorted(keys.items())}"
        return
    by_key = {run.data.tags["agft.trial_key"]: run.info for run in runs}
    for row in rows:
        run = by_key[trial_key(study, row.number)]
        points = sorted((p.step, p.value) for p in client.get_metric_history(run.run_id, "robust_accuracy"))
        if run.status != IN_MLFLOW[row.state] or points != [(r.epoch, r.robust_accuracy) for r in row.epochs]:
            yield f"MLflow: trial {row.number} is {run.status} with epochs {[step for step, _ in points]}"
