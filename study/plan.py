"""What a study would do, worked out without starting it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from study.config import StudyConfig
from study.cost import study_passes
from study.cost_table import short
from study.database import database_url
from study.errors import UserError
from study.plan_search import first_lines, search_lines, search_plan
from study.schedule import rungs
from study.store import StudyStore, study_names

__all__ = ["plan_of", "plan_text"]


def plan_of(spec: StudyConfig, home: Path) -> dict[str, Any]:
    """The plan as JSON values."""
    wanted = spec.resources
    cores = os.cpu_count() or 1
    need = wanted.workers * wanted.cpus_per_worker
    stops = rungs(spec.scheduler, spec.train.epochs)
    here = {} if os.environ.get("RAY_ADDRESS") else {"cores": cores, "trials_at_once": _here(spec, need, cores)}
    return {
        "study": spec.name,
        "arch": spec.model.arch,
        "exists": spec.name in study_names(database_url(home)),
        "trials": spec.budget.trials,
        **search_plan(spec, home),
        "epochs": spec.train.epochs,
        "samples_per_epoch": spec.train.samples_per_epoch,
        "rungs": list(stops),
        "trial_needs": {"CPU": need, "GPU": wanted.workers * wanted.gpus_per_worker},
        "this_machine": here,
        "passes": study_passes(spec),
        "measured": measured_cost(spec, home),
        "writes": {
            "study database": "AGFT_STUDY_DB" if os.environ.get("AGFT_STUDY_DB") else str(home / "studies.db"),
            "checkpoints": f"s3://BUCKET/studies/{spec.name}-CREATED/trials/NUMBER/ (latest and best, one object each)",
            "mlflow": "experiment agft: one run for the study, one nested run a trial",
            "promotion": f"s3://BUCKET/models/{spec.promote.model_name}/VERSION/",
        },
    }


def _here(spec: StudyConfig, need: float, cores: int) -> int:
    wanted = spec.resources
    if wanted.gpus_per_worker == 0 and need > cores:
        raise UserError(
            f"resources: one trial needs {need:g} CPU cores ({wanted.workers} workers x {wanted.cpus_per_worker:g}), "
            f"this machine has {cores}; lower workers or cpus_per_worker, or set RAY_ADDRESS to a larger cluster"
        )
    fitting = int(cores // need)
    return min(fitting, spec.budget.trials, fitting if wanted.max_concurrent == "auto" else wanted.max_concurrent)


def measured_cost(spec: StudyConfig, home: Path) -> dict[str, Any] | None:
    """Device-hours and bytes, from the store's full-length trials of the same model, data and length, if any.

    Every trial keeps its newest state and its best weights, also one that is stopped early.
    """
    url = database_url(home)
    seconds: list[float] = []
    sizes: list[int] = []
    for name in study_names(url):
        store = StudyStore(url, name)
        other = store.load().spec
        if (other.model, other.data.train, other.train.epochs, other.train.samples_per_epoch) == (
            spec.model, spec.data.train, spec.train.epochs, spec.train.samples_per_epoch,
        ):  # fmt: skip
            full = [row for row in store.trials() if row.state == "complete"]
            seconds += [row.device_seconds for row in full]
            sizes += [row.latest["bytes"] + row.best["bytes"] for row in full if row.latest and row.best]
    if not seconds:
        return None
    mean = sum(seconds) / len(seconds)
    return {"full_trials": len(seconds), "device_seconds_per_trial": mean,
            "at_most_device_hours": mean * spec.budget.trials / 3600,
            "bytes_per_trial": max(sizes, default=0), "bytes": max(sizes, default=0) * spec.budget.trials}  # fmt: skip


def promotion_hours(plan: Mapping[str, Any]) -> float:
    """Of one device, if its passes take as long as those of the measured trials, waiting and loading included."""
    passes, seconds = plan["passes"], plan["measured"]["device_seconds_per_trial"]
    return float(passes["promotion"] * seconds / (passes["training"] + passes["evaluations"]) / 3600)


def plan_text(plan: dict[str, Any]) -> str:
    """For a person."""
    lines = [f"study {plan['study']}" + (" (exists: `agft resume` goes on with it)" if plan["exists"] else "")]
    lines.append(f"  trials        {plan['trials']} of {plan['epochs']} epochs, early stopping after epoch "
                 f"{', '.join(map(str, plan['rungs'])) or '- (none)'}")  # fmt: skip
    lines += search_lines(plan)
    need = ", ".join(f"{amount:g} {name}" for name, amount in plan["trial_needs"].items() if amount)
    lines.append(f"  a trial needs {need}")
    if plan["this_machine"]:
        here = plan["this_machine"]
        lines.append(f"  this machine  {here['cores']} cores: {here['trials_at_once']} trials at once")
    passes = {name: short(value) for name, value in plan["passes"].items()}
    lines.append(
        f"  image passes  a full trial {passes['training']} to train, at most {passes['evaluations']} to evaluate"
    )
    lines.append(f"                promotion at most {passes['promotion']}")
    measured = plan["measured"]
    lines.append(
        f"  cost          at most {measured['at_most_device_hours']:.2f} device-hours "
        f"({measured['device_seconds_per_trial']:.0f} s a full trial, measured on {measured['full_trials']})"
        if measured
        else "  cost          not known yet: no full-length trial of this model, data and length has been measured"
    )
    if measured:
        lines.append(f"                promotion at that speed at most {promotion_hours(plan):.2f} device-hours")
        kept = measured["bytes_per_trial"] / 1e6
        lines.append(f"  storage       {measured['bytes'] / 1e6:.3g} MB of checkpoints: {kept:.3g} MB a trial")
    lines += first_lines(plan)
    lines.append("  writes")
    lines += [f"    {what:<16} {where}" for what, where in plan["writes"].items()]
    return "\n".join(lines)
