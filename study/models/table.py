"""What `agft models` shows: every promoted version as S3 has it, and where MLflow's registry says something else."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table

from infra.errors import ServiceError
from infra.tracking.registry import Registered, registered
from study.console import percent
from study.models.catalog import read_version
from study.models.head import read_head, read_manifest
from study.models.manifest import Manifest
from study.statistics import METRICS
from study.store.store import StudyStore
from study.tracking import flat

FORCED_CHARACTERS = 40


def all_facts(bucket: str, chosen: Mapping[str, list[int]], tracking_uri: str) -> list[dict[str, Any]]:
    """`model_facts` of every name; once MLflow does not answer, it is not asked again."""
    found: list[dict[str, Any]] = []
    trouble = ""
    for name, numbers in chosen.items():
        known = None
        if not trouble:
            try:
                known = registered(tracking_uri, name)
            except ServiceError as error:
                trouble = str(error)
        found.append(model_facts(bucket, name, numbers, known, trouble))
    return found


def model_facts(
    bucket: str, name: str, numbers: list[int], known: Registered | None, trouble: str = ""
) -> dict[str, Any]:
    """One model name for machines: HEAD, its versions, and `differences` from MLflow; keys are only ever added.

    `known`: what MLflow has of it; None where it does not answer, with `trouble` saying why.
    """
    head, _ = read_head(bucket, name)
    aliases = {"champion": head.champion, "previous": head.previous}
    versions = [read_manifest(bucket, name, number) for number in numbers]
    rows = [_row(version, aliases, known) for version in versions]
    return {
        "model": name,
        **aliases,
        "generation": head.generation,
        "versions": rows,
        "differences": [trouble] if known is None else _differences(versions, rows, aliases, known),
    }


def _row(version: Manifest, aliases: dict[str, int | None], known: Registered | None) -> dict[str, Any]:
    final, confirm = version.own("final"), version.own("confirm")
    return {
        "version": version.version,
        "aliases": [alias for alias, number in aliases.items() if number == version.version],
        "study": version.study,
        "trial": version.trial,
        "clean_accuracy": final["clean_accuracy"],
        "robust_accuracy": final["robust_accuracy"],
        "confirm_clean_accuracy": confirm["clean_accuracy"],
        "confirm_robust_accuracy": confirm["robust_accuracy"],
        "created": version.created_ms / 1000,
        "forced": version.forced,
        "failed_gates": version.failed_gates,
        "sha256": version.weights.sha256,
        "uri": f"{version.prefix}/",
        "mlflow_version": None if known is None else known.versions.get(version.key),
    }


def _differences(
    versions: Sequence[Manifest], rows: Sequence[dict[str, Any]], aliases: dict[str, int | None], known: Registered
) -> list[str]:
    found = [f"version {row['version']} is not in MLflow" for row in rows if row["mlflow_version"] is None]
    by_number: dict[int | None, int | None] = {row["version"]: row["mlflow_version"] for row in rows}
    back = {mlflow: number for number, mlflow in by_number.items() if mlflow is not None}
    for alias, number in aliases.items():
        there = known.aliases.get(alias)
        if (there is None) != (number is None) or there != by_number.get(number):
            says = "nothing" if there is None else f"version {back[there]}" if there in back else f"its version {there}"
            should = "none" if number is None else f"version {number}"
            found.append(f"alias {alias}: MLflow says {says}, HEAD.json says {should}")
    keys = {version.key for version in versions}
    extra = sorted(number for key, number in known.versions.items() if key not in keys)
    return found + [f"MLflow's version {number} is not in S3" for number in extra]


def models_table(facts: dict[str, Any]) -> Table:
    """One model name, its newest version first. Accuracies are those on the final sets."""
    title = f"model {facts['model']}: champion {_named(facts['champion'])}, previous {_named(facts['previous'])}"
    table = Table(title=title, title_justify="left")
    for name in ("version", "alias", "study", "trial", "clean", "robust", "promoted", "gates", "MLflow"):
        table.add_column(name, justify="right" if name in ("version", "trial", "clean", "robust") else "left")
    for row in reversed(facts["versions"]):
        table.add_row(
            str(row["version"]), ", ".join(row["aliases"]), str(row["study"]), str(row["trial"]),
            percent(row["clean_accuracy"]), percent(row["robust_accuracy"]), when(row["created"]), _gates(row),
            "-" if row["mlflow_version"] is None else f"v{row['mlflow_version']}",
        )  # fmt: skip
    return table


def difference_lines(facts: dict[str, Any]) -> list[str]:
    """What MLflow says otherwise, and how to put it right."""
    if not facts["differences"]:
        return []
    if facts["differences"][0].startswith("MLflow at "):
        return [f"  not compared: {facts['differences'][0]}"]
    lines = [f"  differs from MLflow: {line}" for line in facts["differences"]]
    return [*lines, f"  put MLflow right with: agft models {facts['model']} --repair"]


def _named(number: int | None) -> str:
    return "none" if number is None else f"version {number}"


def when(seconds: float) -> str:
    """Local time."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _gates(row: dict[str, Any]) -> str:
    if row["forced"]:
        return f"forced: {row['forced']}"[:FORCED_CHARACTERS]
    return "failed: " + ", ".join(row["failed_gates"]) if row["failed_gates"] else "passed"


# `agft diff`: two promoted versions, or two trials, side by side; only what differs.

TRIAL = re.compile(r"^(?:study:)?(?P<study>[a-z0-9][a-z0-9._-]*)[/#](?P<number>\d+)$")
SECTIONS = ("what", "configuration", "data", "numbers")


def facts_of(named: str, *, bucket: str, database: str) -> dict[str, dict[str, Any]]:
    """Section -> path -> value, of `NAME[@champion|@previous|@N]` or of the trial `STUDY/NUMBER`.

    `UserError` with the nearest name when there is none.
    """
    match = TRIAL.match(named)
    if match and not named.startswith("models:/"):
        return _of_trial(StudyStore(database, match["study"]), int(match["number"]))
    return _of_version(named, bucket)


def _of_trial(store: StudyStore, number: int) -> dict[str, dict[str, Any]]:
    store.load()  # an unknown study, with the nearest name
    trial = store.trial(number)
    numbers: dict[str, Any] = {}
    if trial.last:
        numbers = {"epochs": trial.last.epoch, "best epoch": trial.last.best_epoch}
        numbers |= {"train_loss": trial.last.train_loss}
        best = next((r for r in trial.epochs if r.epoch == trial.last.best_epoch), trial.last)
        numbers |= _accuracies("dev", best.model_dump(mode="json"))
    numbers["device_seconds"] = round(trial.device_seconds, 1)
    inputs = next((a.provenance.get("inputs") or {} for a in reversed(trial.attempts) if a.provenance), {})
    what = {"study": store.name, "trial": number, "state": trial.state, "sha256": trial.best and trial.best.sha256}
    return _sections(what, trial.config, inputs, numbers)


def _of_version(named: str, bucket: str) -> dict[str, dict[str, Any]]:
    version = read_version(bucket, named)
    numbers: dict[str, Any] = {}
    for role in ("confirm", "final"):
        numbers |= _accuracies(role, version.own(role)) | _accuracies(f"{role}.clip", version.unmodified(role))
    numbers |= {f"gate {gate.name}": f"{gate.verdict}: {gate.found}" for gate in version.gates}
    if version.calibration:
        keys = {"temperature", "calibration_error", "calibration_error_at_temperature"}
        numbers |= {f"final.{key}": value for key, value in version.calibration.model.model_dump(include=keys).items()}
    code = version.provenance.get("code") or {}
    what = {
        **version.model_dump(include={"model", "version", "study", "trial", "forced"}),
        "promoted": version.created_ms // 1000,
        "sha256": version.weights.sha256,
        "code": code.get("revision"),
        "code.dirty": code.get("dirty"),
    }
    return _sections(what, version.config, version.inputs, numbers)


def _accuracies(role: str, result: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"{role}.{key}": result[key] for key in METRICS}
    for name, by_eps in result["datasets"].items():
        for eps, score in by_eps.items():
            found[f"{role}.{name}.clean"] = score["clean_accuracy"]
            found[f"{role}.{name}.robust at {eps}"] = score["robust_accuracy"]
    return found


SETS = ("data.", "evaluate.datasets")


def _sections(
    what: dict[str, Any], config: Mapping[str, Any], inputs: Mapping[str, Any], numbers: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    paths = flat(config)
    data = {path: value for path, value in paths.items() if path.startswith(SETS)}
    data |= {f"content of {name}": value for name, value in inputs.items() if value}
    plain = {path: value for path, value in paths.items() if not path.startswith(SETS)}
    return {"what": what, "configuration": plain, "data": data, "numbers": numbers}


def differences(
    first: dict[str, dict[str, Any]], second: dict[str, dict[str, Any]]
) -> dict[str, dict[str, tuple[Any, Any]]]:
    """Section -> path -> (first, second) where they differ; None where one side has no such path."""
    found: dict[str, dict[str, tuple[Any, Any]]] = {}
    for section in SECTIONS:
        before, after = first[section], second[section]
        paths = [*before, *(path for path in after if path not in before)]
        rows = {p: (before.get(p), after.get(p)) for p in paths if before.get(p) != after.get(p)}
        if rows:
            found[section] = rows
    return found


def differences_table(names: tuple[str, str], found: dict[str, dict[str, tuple[Any, Any]]]) -> Table:
    """By section; a column of differences for numbers, in points for accuracies."""
    table = Table(title=f"{names[0]} against {names[1]}: what differs", title_justify="left")
    table.add_column("")
    for name in names:
        table.add_column(name, overflow="fold")
    table.add_column("difference", justify="right")
    for section, rows in found.items():
        table.add_row(f"[bold]{section}[/bold]")
        for path, (before, after) in rows.items():
            table.add_row(f"  {path}", _shown(path, before), _shown(path, after), _change(path, before, after))
    return table


def _is_accuracy(path: str) -> bool:
    return path.endswith(("_accuracy", ".clean")) or ".robust at " in path or "calibration_error" in path


def _shown(path: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{100 * value:.1f} %" if _is_accuracy(path) else f"{value:.6g}"
    text = str(value)
    return f"{text[:12]}..." if re.fullmatch(r"[0-9a-f]{32,64}", text) else text


def _change(path: str, before: Any, after: Any) -> str:
    if not (isinstance(before, float) and isinstance(after, float)):
        return ""
    return f"{100 * (after - before):+.1f}" if _is_accuracy(path) else f"{after - before:+.4g}"
