"""`agft diff`: two promoted versions, or two trials, side by side; only what differs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from study.catalog import created, forced_reason, gate_verdict, read_version
from study.projection import flat
from study.store import StudyStore

__all__ = ["differences", "differences_table", "facts_of"]

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
        numbers = {"epochs": trial.last["epoch"], "best epoch": trial.last["best_epoch"]}
        numbers |= {"train_loss": trial.last["train_loss"]}
        best = next((r for r in trial.epochs if r["epoch"] == trial.last["best_epoch"]), trial.last)
        numbers |= _accuracies("dev", best)
    numbers["device_seconds"] = round(trial.device_seconds, 1)
    inputs = next((a.provenance.get("inputs") or {} for a in reversed(trial.attempts) if a.provenance), {})
    what = {"study": store.name, "trial": number, "state": trial.state, "sha256": (trial.best or {}).get("sha256")}
    return _sections(what, trial.config, inputs, numbers)


def _of_version(named: str, bucket: str) -> dict[str, dict[str, Any]]:
    version = read_version(bucket, named)
    manifest = version.manifest
    numbers: dict[str, Any] = {}
    for role in ("confirm", "final"):
        for label, result in (manifest.get(role) or {}).items():
            own = label == f"trial {manifest.get('trial')}"
            if own or label == "unmodified CLIP":
                numbers |= _accuracies(role if own else f"{role}.clip", result)
    for gate in manifest.get("gates") or []:
        numbers[f"gate {gate['name']}"] = f"{gate_verdict(gate)}: {gate.get('found', gate.get('value'))}"
    calibration = (manifest.get("calibration") or {}).get("model") or {}
    keys = ("temperature", "calibration_error", "calibration_error_at_temperature")
    numbers |= {f"final.{key}": calibration[key] for key in keys if key in calibration}
    what = {key: manifest.get(key) for key in ("model", "version", "study", "trial")}
    what |= {"forced": forced_reason(manifest), "promoted": None if (at := created(manifest)) is None else int(at)}
    what |= {"sha256": manifest["weights"]["sha256"]}
    code = (manifest.get("provenance") or {}).get("code") or {}
    what |= {"code": code.get("revision"), "code.dirty": code.get("dirty")}
    return _sections(what, manifest.get("config") or {}, manifest.get("inputs") or {}, numbers)


def _accuracies(role: str, result: Mapping[str, Any]) -> dict[str, Any]:
    found = {f"{role}.{key}": result[key] for key in ("clean_accuracy", "robust_accuracy") if key in result}
    for name, by_eps in (result.get("datasets") or {}).items():
        for eps, score in by_eps.items():
            found[f"{role}.{name}.clean"] = score["clean_accuracy"]
            found[f"{role}.{name}.robust at {eps}"] = score["robust_accuracy"]
    return found


def _sections(
    what: dict[str, Any], config: Mapping[str, Any], inputs: Mapping[str, Any], numbers: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    paths = flat(config)
    data = {path: value for path, value in paths.items() if path.startswith("data.")}
    data |= {f"content of {name}": value for name, value in inputs.items() if value}
    plain = {path: value for path, value in paths.items() if not path.startswith("data.")}
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
