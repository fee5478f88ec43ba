"""What `agft models` shows: every promoted version as S3 has it, and where MLflow's registry says something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from rich.table import Table

from infra.errors import ServiceError
from infra.registry import Registered, registered
from study.catalog import Version, created, failed_gates, forced_reason, own_result, version_key, versions_of
from study.champion import read_head
from study.console import percent

__all__ = ["all_facts", "difference_lines", "models_table"]

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
    versions = versions_of(bucket, name, numbers)
    rows = [_row(version, aliases, known) for version in versions]
    return {
        "model": name,
        **aliases,
        "generation": head.generation,
        "versions": rows,
        "differences": [trouble] if known is None else _differences(versions, rows, aliases, known),
    }


def _row(version: Version, aliases: dict[str, int | None], known: Registered | None) -> dict[str, Any]:
    manifest = version.manifest
    final, confirm = own_result(manifest, "final") or {}, own_result(manifest, "confirm") or {}
    key = version_key(version.prefix, manifest)
    return {
        "version": version.number,
        "aliases": [alias for alias, number in aliases.items() if number == version.number],
        "study": manifest.get("study"),
        "trial": manifest.get("trial"),
        "clean_accuracy": final.get("clean_accuracy"),
        "robust_accuracy": final.get("robust_accuracy"),
        "confirm_clean_accuracy": confirm.get("clean_accuracy"),
        "confirm_robust_accuracy": confirm.get("robust_accuracy"),
        "created": created(manifest),
        "forced": forced_reason(manifest),
        "failed_gates": failed_gates(manifest),
        "sha256": manifest["weights"]["sha256"],
        "uri": f"{version.prefix}/",
        "mlflow_version": None if known is None else known.versions.get(key),
    }


def _differences(
    versions: Sequence[Version], rows: Sequence[dict[str, Any]], aliases: dict[str, int | None], known: Registered
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
    keys = {version_key(version.prefix, version.manifest) for version in versions}
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


def when(seconds: float | None) -> str:
    """Local time; a dash without one."""
    return "-" if seconds is None else datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


def _gates(row: dict[str, Any]) -> str:
    if row["forced"]:
        return f"forced: {row['forced']}"[:FORCED_CHARACTERS]
    if row["failed_gates"] is None:
        return "-"
    return "failed: " + ", ".join(row["failed_gates"]) if row["failed_gates"] else "passed"
