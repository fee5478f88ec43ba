"""An evaluation as MLflow shows it: one run a model and suite, safe to ship again; its truth is in its own place."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence

from infra.tracking.calls import Point
from infra.tracking.runs import Tracker
from study.evaluation.ledger import Ledger
from study.evaluation.table import by_dataset, markdown_table, remarks, summary
from study.evaluation.units import Evaluation
from study.markdown import escaped
from study.statistics import means
from trainers.data import safe_name
from trainers.evaluation.record import EvaluationRecord
from trainers.schema.suite import AttackAt
from trainers.schema.units import eps_label

EXPERIMENT = "agft/evaluations"
CLOSE_SECONDS = 60.0


def ship(
    results: Sequence[tuple[Ledger, Sequence[EvaluationRecord]]], tracking_uri: str, say: Callable[[str], None]
) -> None:
    """Bring MLflow in line. When it does not answer, that is said, and nothing is lost."""
    say("MLflow: sending the records ...")
    tracker = Tracker(tracking_uri, EXPERIMENT)
    try:
        for ledger, records in results:
            project_evaluation(tracker, ledger.evaluation, records, ledger.place.at(""))
        tracker.flush(CLOSE_SECONDS)
        page = tracker.page()
    finally:
        left = tracker.close(1.0)
    if left or tracker.dropped:
        reasons = "; ".join(tracker.dropped) or "it does not answer"
        say(f"warning: MLflow at {tracking_uri} has not got everything ({reasons}); the records are complete all the "
            "same, and the same command sends them again")  # fmt: skip
    else:
        say(f"MLflow: {page}")


def run_key(evaluation: Evaluation) -> str:
    """Names the run for ever."""
    return f"evaluation:{evaluation.digest}"


def project_evaluation(tracker: Tracker, evaluation: Evaluation, records: Sequence[EvaluationRecord], out: str) -> None:
    """Put the whole run on the tracker's queue."""
    key, suite, model = run_key(evaluation), evaluation.suite, evaluation.model
    started = min(record.run["started_ms"] for record in records)
    ended = max(record.run["ended_ms"] for record in records)
    tracker.ensure_run(
        key,
        name=f"{model.label} on {suite.name}",
        params={
            "model": model.label,
            "arch": model.arch,
            "suite": suite.name,
            "protocol": suite.protocol,
            "seed": str(suite.seed),
            "datasets": ", ".join(suite.datasets),
            "original": evaluation.original.label if evaluation.original else "none",
            "logit_scale": f"{model.logit_scale:.6g}",
            "device": ", ".join(sorted({record.device for record in records})),
            **{f"attack.{entry.label}": _words(entry) for entry in suite.attacks},
        },
        tags={
            "agft.weights.sha256": model.weights_sha256,
            "agft.evaluation": evaluation.digest,
            "agft.suite": suite.name,
            "agft.out": out,
            "agft.failed_checks": _failed(records),
            "mlflow.note.content": "\n\n".join(
                [*map(escaped, remarks(records)), markdown_table(evaluation, records, intervals=False)]
            ),
        },
        start_time_ms=started,
    )
    tracker.log(key, metric_points(records, suite.source, ended))
    for record in records:
        text = record.model_dump_json(indent=1)
        tracker.log_text(key, text, f"records/{safe_name(record.dataset.name)}/{record.attack_label}.json")
    tracker.log_text(key, json.dumps(summary(evaluation, records, out), indent=1), "summary.json")
    tracker.log_text(key, markdown_table(evaluation, records, intervals=True), "table.md")
    tracker.finish(key, "FINISHED", ended)


def _words(entry: AttackAt) -> str:
    sample = "all images" if entry.samples is None else f"{entry.samples} images a set"
    return f"{entry.norm} {', '.join(map(eps_label, entry.eps))}; {sample}"


def _failed(records: Sequence[EvaluationRecord]) -> str:
    if not any(record.sanity for record in records):
        return "not checked"
    return ", ".join(sorted({name for record in records for name in record.failed_checks})) or "none"


def metric_points(records: Sequence[EvaluationRecord], source: Collection[str], stamp: int) -> list[Point]:
    """Means of accuracies, then every dataset's. MLflow's page makes a section of names with the same beginning.

    Names hold no dataset's own characters, since a folder's path is no name for MLflow.
    """
    values = {
        f"{_section(mean.attack, mean.eps)}/{'mean' if mean.source else 'mean-without-source'}": mean.accuracy
        for mean in means(records, source)
    }
    for name, group in by_dataset(records).items():
        values[f"clean_accuracy/{safe_name(name)}"] = max(group, key=lambda record: record.clean.total).clean.accuracy
    for record in records:
        for at in record.radii:
            values[f"{_section(record.attack_label, at.label)}/{safe_name(record.dataset.name)}"] = at.robust.accuracy
    return [Point(name, value, 0, stamp) for name, value in values.items()]


def _section(attack: str, eps: str | None) -> str:
    return "clean_accuracy" if eps is None else f"robust_accuracy/{attack}/{eps.replace('/', '_')}"
