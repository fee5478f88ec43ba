"""Everything that a comparison found, as one JSON record: from the study store and the kept measurements."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.provenance import provenance
from study.comparison.file import Comparison
from study.errors import StudyFailed
from study.plan.cost import update_passes
from study.results.ranking import Measurement, ranked
from study.spec.dimension import shown
from study.spec.promotion import parse_floor
from study.statistics import COVERAGE, METRICS, each_of, mean_accuracy, seed_differences, set_accuracy, spread
from study.store.rows import TrialRow
from study.store.store import StudyStore
from trainers.data import dataset_entry
from trainers.objectives import METHODS

UNMODIFIED = "unmodified CLIP"


def chosen(store: StudyStore) -> TrialRow:
    """The trial that a method goes on with: the best by the goal, or the one nearest to its floors."""
    study = store.load()
    best = next(iter(ranked(store.trials(), study.goal)), None) if study.goal else None
    if best is None:
        raise StudyFailed(f"no trial of study {study.name!r} ran to its end; see `agft status {study.name}`")
    return best


def result_path(comparison: Comparison, folder: Path, label: str, seed: str, weights: Mapping[str, Any] | None) -> Path:
    """Where a result on the final sets is kept: told by the weights, the sets and the evaluation's settings."""
    spec = comparison.shared()
    of = {
        "weights": weights["sha256"] if weights else spec.model.model_dump(mode="json"),
        "suite": spec.evaluate.final.suite("final", spec.data.final).model_dump(mode="json"),
    }
    digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()
    name = "-".join([label.replace(" ", "-"), *([seed] if seed else []), digest[:16]])
    return folder / "measured" / f"{name}.json"


def kept_result(
    comparison: Comparison, folder: Path, label: str, seed: str, weights: Mapping[str, Any] | None
) -> Measurement | None:
    """The result of these weights under these settings, if they have been measured."""
    path = result_path(comparison, folder, label, seed, weights)
    return dict(json.loads(path.read_text(encoding="utf-8"))["result"]) if path.is_file() else None


def collect(comparison: Comparison, database: str, folder: Path) -> dict[str, Any]:
    """The record of a complete comparison."""
    spec = comparison.shared()
    first = StudyStore(database, spec.name).load()
    methods = {label: _method(comparison, label, database, folder) for label in comparison.searches}
    setting = spec.model_dump(
        mode="json", include={"model", "data", "train", "evaluate", "goal", "sampler", "scheduler", "resources", "seed"}
    )
    return conclude(
        {
            "name": comparison.name,
            "created_ms": first.created_ms,
            "reference": comparison.reference,
            "seeds": list(comparison.seeds),
            "setting": {**setting, "trials": spec.budget.trials},
            "held_out": [name for name in spec.data.final if dataset_entry(name, "data.final").held_out],
            "unmodified": {
                "dev": first.baseline and first.baseline.model_dump(mode="json"),
                "final": kept_result(comparison, folder, UNMODIFIED, "", None),
            },
            "methods": methods,
            "provenance": provenance(),
        }
    )


def conclude(record: dict[str, Any]) -> dict[str, Any]:
    """The record with what follows from its runs: every method on every final set, and the groups of them."""
    for method in record["methods"].values():
        method["summary"] = {
            "sets": {
                each: {
                    name: asdict(spread([set_accuracy(final["datasets"][each], name) for final in finals(method)]))
                    for name in METRICS
                }
                for each in record["unmodified"]["final"]["datasets"]
            }
        }
    groups = {title: _Group(record, sets) for title, sets in _groups(record).items()}
    number = sum(group.intervals for group in groups.values())
    record["intervals"] = {"number": number, "each": each_of(number), "together": COVERAGE, "by": "Bonferroni"}
    record["groups"] = [{"title": title, **group.record(number)} for title, group in groups.items()]
    record["dev_floors"] = _floors(record, record["unmodified"]["dev"] or {})
    record.pop("differences", None)  # of records made before there were groups
    return record


def finals(method: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What its runs reached on the final sets; a failed run is left out."""
    return [run["final"] for run in method["runs"] if run["final"]]


ALL, WHOLE, HELD_OUT = "final sets", "whole sets", "held-out classes"


def _groups(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """Sets of held-out classes stand apart from whole sets, where a comparison has both."""
    held_out = record.get("held_out", [])
    every = list(record["unmodified"]["final"]["datasets"])
    apart = [name for name in every if name in held_out]
    whole = [name for name in every if name not in held_out]
    return {WHOLE: whole, HELD_OUT: apart} if apart and whole else {ALL: every}


def _floors(record: Mapping[str, Any], clip: Mapping[str, Any]) -> dict[str, float]:
    """The goal's floors in numbers, where the unmodified CLIP reaches `clip`."""
    floors = record["setting"]["goal"]["subject_to"]
    return {name: parse_floor(text).resolve(clip[name]) for name, text in floors.items() if name in clip}


class _Group:
    """Some of the final sets: means over them of every method, and differences to the reference."""

    def __init__(self, record: Mapping[str, Any], sets: list[str]) -> None:
        def means(final: Mapping[str, Any]) -> dict[str, float]:
            return {name: mean_accuracy(final["datasets"], sets, name) for name in METRICS}

        self.sets = sets
        self.unmodified = means(record["unmodified"]["final"])
        self.floors = _floors(record, self.unmodified)
        self.runs = {
            label: {run["seed"]: means(run["final"]) for run in method["runs"] if run["final"]}
            for label, method in record["methods"].items()
        }
        self.differences = seed_differences(self.runs, record["reference"])

    @property
    def intervals(self) -> int:
        every = [found for by_metric in self.differences.values() for found in by_metric.values()]
        return sum(found is not None and found.interval() is not None for found in every)

    def record(self, among: int) -> dict[str, Any]:
        """As JSON values. `below`: the seeds that miss a floor of the goal, reckoned from these sets' own accuracies.

        Floors hold on the dev sets, where checkpoints are chosen; on others nothing sees to it.
        """
        return {
            "sets": self.sets,
            "unmodified": self.unmodified,
            "methods": {
                label: {name: asdict(spread([run[name] for run in runs.values()])) for name in METRICS}
                for label, runs in self.runs.items()
            },
            "differences": {
                label: {name: found and found.record(among) for name, found in by_metric.items()}
                for label, by_metric in self.differences.items()
            },
            "floors": self.floors,
            "below": {
                label: {
                    name: [seed for seed, run in runs.items() if run[name] < floor]
                    for name, floor in self.floors.items()
                }
                for label, runs in self.runs.items()
            },
        }


def _method(comparison: Comparison, label: str, database: str, folder: Path) -> dict[str, Any]:
    store = StudyStore(database, comparison.searches[label].name)
    study, trials, best = store.load(), store.trials(), chosen(store)
    again = StudyStore(database, f"{study.name}-seeds")
    assert best.last is not None, "a chosen trial has run to its end"
    return {
        "method": study.spec.method.name,
        "study": study.name,
        "attack": best.config["attack"],
        "passes": update_passes(best.config["method"], best.config["attack"]),
        "search": {
            "space": study.spec.search,
            "trials": [_trial(trial) for trial in trials],
            "device_seconds": sum(trial.device_seconds for trial in trials),
        },
        "chosen": {**_trial(best), "params": best.params, "config": best.config},
        "runs": [_run(comparison, label, folder, trial) for trial in again.trials()],
        "code": [(row.load().provenance or {}).get("code") for row in (store, again)],
    }


def _trial(trial: TrialRow) -> dict[str, Any]:
    last = trial.last
    return {
        "trial": trial.number,
        "state": trial.state,
        "failure": trial.failure_kind,
        "best_epoch": last.best_epoch if last else None,
        "clean_accuracy": last.best_clean_accuracy if last else None,
        "robust_accuracy": last.best_robust_accuracy if last else None,
        "clean_calibration": last.best_clean_calibration if last else None,
        "robust_calibration": last.best_robust_calibration if last else None,
        "feasible": last.best_feasible if last else None,
        "params": trial.params,
        "device_seconds": trial.device_seconds,
        "images_per_second": _mean([epoch.images_per_second for epoch in trial.epochs]),
    }


def _run(comparison: Comparison, label: str, folder: Path, trial: TrialRow) -> dict[str, Any]:
    seed = int(trial.params["seed"])
    weights = trial.best.model_dump() if trial.best and trial.state == "complete" else None
    final = kept_result(comparison, folder, label, str(seed), weights) if weights else None
    return {**_trial(trial), "seed": seed, "weights": weights, "final": final}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


# Which form of a method a comparison ran: the paper's, or one with terms that the paper does not have.

Record = Mapping[str, Any]
SCALE = "logit_scale"


def form_name(method: Record) -> str | None:
    """What a method's form is called where its search or its chosen trial left the paper's; None where neither did."""
    return METHODS[method["method"]].other_form[0] if _apart(method) else None


def _apart(method: Record) -> list[str]:
    """The fields in which a method's form is, or could have become, another than the paper's."""
    own = METHODS[method["method"]].model_validate(method["chosen"]["config"]["method"])
    found = []
    for field in own.other_form[1]:
        value, paper = getattr(own, field), type(own).model_fields[field].default
        text = f"the paper's {shown(field, value)}" if value == paper else shown(field, value)
        if f"method.{field}" in method["search"]["space"]:
            found.append(f"`{field}` searched, chosen {text}")
        elif value != paper:
            found.append(f"`{field}` {text}")
    return found


def form_lines(record: Record) -> list[str]:
    """Methods that are not in their paper's form, and which of them searched the scale that they train at."""
    lines = []
    for label, method in record["methods"].items():
        apart = _apart(method)
        if apart:
            lines.append(f"**{label} is {form_name(method)}**: {'; '.join(apart)}.")
    searched: list[str] = []
    fixed: list[str] = []
    without: list[str] = []
    for label, method in record["methods"].items():
        if SCALE not in METHODS[method["method"]].model_fields:
            without.append(label)
        else:
            (searched if f"method.{SCALE}" in method["search"]["space"] else fixed).append(label)
    groups = (("searched by", searched or ["none"]), ("held fixed by", fixed), ("not a field of", without))
    lines.append(f"`method.{SCALE}`: " + "; ".join(f"{what} {', '.join(who)}" for what, who in groups if who) + ".")
    return lines
