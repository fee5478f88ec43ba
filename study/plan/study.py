"""What a study would do, worked out without starting it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution

from study.errors import UserError
from study.plan.cost import short, study_passes
from study.plan.idle import knowledge_line, knowledge_notes, knowledge_plan
from study.search.prior import earlier_studies, resolve
from study.search.proposals import first_proposals, given
from study.search.stopping import rungs
from study.spec.config import SAMPLERS, STOPPING, StudyConfig
from study.spec.dimension import Dimension, shown
from study.spec.outside import outside_entries
from study.spec.starts import given_trials
from study.store.database import database_url
from study.store.store import StudyStore, study_names
from trainers.table import Table

# What a valid study file says without any effect, or with one that its writer may not expect.


def remarks(spec: StudyConfig, starts: int = 0) -> list[str]:
    """One line each, `path: rule`. `starts`: trials that are given, which come before anything is proposed."""
    whose = [f"{path}: {origin}, file {(origin.sha256 or '?')[:12]}" for path, origin in outside_entries(spec).items()]
    return [*_unread(spec), *_sampler(spec, starts), *_stopping(spec), *whose]


def _unread(spec: StudyConfig) -> Iterator[str]:
    """Fields that the file gives and nobody reads."""
    tables: tuple[tuple[str, Table[Any]], ...] = (("sampler", SAMPLERS), ("scheduler", STOPPING))
    for part, table in tables:
        block = getattr(spec, part)
        for name in [each for each in type(block).model_fields if each in block.model_fields_set]:
            readers = [each for each, row in table.items() if name in row.reads]
            if readers and block.name not in readers:
                yield f"{part}.{name}: has no effect with {block.name}; read by {' and '.join(readers)}"
    for part in ("scheduler", "budget"):
        block = getattr(spec, part)
        if "min_delta" in block.model_fields_set and block.min_delta and block.patience is None:
            yield f"{part}.min_delta: has no effect without {part}.patience"
    if spec.sampler.row.exhaustive:
        for name in ("warm_starts", "prior"):
            if name in spec.model_fields_set and getattr(spec, name):
                yield f"{name}: has no effect with a grid, whose points are all the trials there are"


def _sampler(spec: StudyConfig, starts: int) -> Iterator[str]:
    yield from spec.sampler.row.remarks(spec)
    trials = spec.budget.trials
    if not spec.sampler.row.exhaustive and starts > trials:
        yield f"budget.trials: {trials}, and {starts} trials are given: the last {starts - trials} are never run"


def _stopping(spec: StudyConfig) -> Iterator[str]:
    if spec.scheduler.row.stops and not rungs(spec.scheduler, spec.train.epochs):
        yield f"scheduler.name: {spec.scheduler.name} has no epoch of {spec.train.epochs} to stop a trial at"
    yield from spec.scheduler.row.remarks(spec)
    if spec.budget.patience is not None and spec.budget.patience >= spec.budget.trials:
        yield f"budget.patience: {spec.budget.patience} trials in a row are too many of {spec.budget.trials}"


# What `agft plan` says of the search: who proposes, over which space, the first trials, and what has no effect.

FIRST = 5  # trials that are shown at least; given ones are shown all, and two drawn ones with them


def search_plan(spec: StudyConfig, home: Path) -> dict[str, Any]:
    """As JSON values. The first samples are those that the study will draw (same seeds, same sampler)."""
    dimensions = spec.dimensions()
    prior = resolve(spec, earlier_studies(database_url(home), spec))
    starts = given(spec, dimensions, prior.starts)
    count = min(spec.budget.trials, max(FIRST, len(starts) + 2), max(_blind(spec), len(starts)))
    samples = first_proposals(spec, count, starts)
    origins = [start.origin for start in starts][:count]
    return {
        "sampler": spec.sampler.row.words(spec.sampler),
        "goal": list(spec.goal.at({}).names),
        "space": [{"path": d.path, "values": _values(d), "when": _when(d)} for d in dimensions],
        "first_samples": samples,
        "origins": origins + ["drawn"] * (len(samples) - len(origins)),
        "notes": [
            *(f"{start.origin}: {path}: its value is outside the range, sampled instead"
              for start in given_trials(spec, dimensions) for path in start.left_out),
            *prior.notes, *remarks(spec, len(starts)),
        ],
    }  # fmt: skip


def _blind(spec: StudyConfig) -> int:
    """How many first trials cannot depend on results."""
    blind = spec.sampler.row.blind
    return spec.budget.trials if blind is None else blind(spec.sampler)


def _values(dimension: Dimension) -> str:
    distribution, path = dimension.distribution, dimension.path
    of = f" ({dimension.wrapper})" if dimension.wrapper else ""
    if isinstance(distribution, CategoricalDistribution):
        return ", ".join(shown(path, value) for value in dict.fromkeys(distribution.choices)) + of
    ends = f"{shown(path, distribution.low)} to {shown(path, distribution.high)}"
    step = getattr(distribution, "step", None)
    by = f" in steps of {shown(path, step)}" if step and step != 1 else ""
    return ends + (" (log)" if distribution.log else "") + by + of


def _when(dimension: Dimension) -> str:
    return " and ".join(f"{path} is {' or '.join(map(str, allowed))}" for path, allowed in dimension.when)


def search_lines(plan: Mapping[str, Any]) -> list[str]:
    """For a person: goal, sampler and space."""
    several = len(plan["goal"]) > 1
    lines = [f"  goal          {'Pareto front of ' if several else 'max '}{' and '.join(plan['goal'])}"]
    lines.append(f"  sampler       {plan['sampler']}")
    widths = [max((len(row[key]) for row in plan["space"]), default=0) for key in ("path", "values")]
    for place, row in enumerate(plan["space"]):
        head = "  search        " if place == 0 else " " * 16
        when = f"  when {row['when']}" if row["when"] else ""
        lines.append(f"{head}{row['path']:<{widths[0]}}  {row['values']:<{widths[1]}}{when}".rstrip())
    return lines


def first_lines(plan: Mapping[str, Any]) -> list[str]:
    """For a person: the first trials and where they come from; then what has no effect."""
    width = max(map(len, plan["origins"]), default=0)
    lines = ["  first trials"]
    for number, (params, origin) in enumerate(zip(plan["first_samples"], plan["origins"], strict=True)):
        values = ", ".join(f"{path} {shown(path, value)}" for path, value in params.items())
        lines.append(f"    {number:>3}  {origin:<{width}}  {values}")
    return lines + (["  notes"] if plan["notes"] else []) + [f"    {note}" for note in plan["notes"]]


def plan_of(spec: StudyConfig, home: Path) -> dict[str, Any]:
    """The plan as JSON values."""
    wanted = spec.resources
    cores = os.cpu_count() or 1
    need = wanted.workers * wanted.cpus_per_worker
    stops = rungs(spec.scheduler, spec.train.epochs)
    slots = None if os.environ.get("RAY_ADDRESS") else _here(spec, need, cores)
    here = {} if slots is None else {"cores": cores, "trials_at_once": min(slots, spec.budget.trials)}
    exists, measured = spec.name in study_names(database_url(home)), measured_cost(spec, home)
    search = search_plan(spec, home)
    devices = wanted.workers * (wanted.gpus_per_worker or 1.0)
    knowledge = knowledge_plan(
        spec, slots=None if wanted.gpus_per_worker else slots,  # cores do not say how many GPUs there are
        stored=StudyStore(database_url(home), spec.name).load().lag if exists else None,
        full_seconds=measured["device_seconds_per_trial"] / devices if measured else None,
    )  # fmt: skip
    search["notes"] += knowledge_notes(knowledge)
    return {
        "study": spec.name,
        "arch": spec.model.arch,
        "exists": exists,
        "trials": spec.budget.trials,
        **search,
        "epochs": spec.train.epochs,
        "samples_per_epoch": spec.train.samples_per_epoch,
        "rungs": list(stops),
        "trial_needs": {"CPU": need, "GPU": wanted.workers * wanted.gpus_per_worker},
        "this_machine": here,
        "knowledge": knowledge,
        "passes": study_passes(spec),
        "measured": measured,
        "writes": {
            "study database": "AGFT_STUDY_DB" if os.environ.get("AGFT_STUDY_DB") else str(home / "studies.db"),
            "checkpoints": f"s3://BUCKET/studies/{spec.name}-CREATED/trials/NUMBER/ (latest and best, one object each)",
            "mlflow": "experiment agft: one run for the study, one nested run a trial",
            "promotion": f"s3://BUCKET/models/{spec.promote.model_name}/VERSION/",
        },
    }


def _here(spec: StudyConfig, need: float, cores: int) -> int:
    """Trials that fit side by side on this machine, however many the study has."""
    wanted = spec.resources
    if wanted.gpus_per_worker == 0 and need > cores:
        raise UserError(
            f"resources: one trial needs {need:g} CPU cores ({wanted.workers} workers x {wanted.cpus_per_worker:g}), "
            f"this machine has {cores}; lower workers or cpus_per_worker, or set RAY_ADDRESS to a larger cluster"
        )
    fitting = int(cores // need)
    return fitting if wanted.max_concurrent == "auto" else min(fitting, wanted.max_concurrent)


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
            sizes += [(row.latest.bytes or 0) + (row.best.bytes or 0) for row in full if row.latest and row.best]
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
    lines.append(f"  knowledge     {knowledge_line(plan['knowledge'])}")
    passes = {name: short(value) for name, value in plan["passes"].items()}
    lines.append(
        f"  image passes  a full trial {passes['training']} to train, at most {passes['evaluations']} to evaluate"
    )
    lines.append(f"                promotion at most {passes['promotion']}")
    if measured := plan["measured"]:
        kept = measured["bytes_per_trial"] / 1e6
        lines += [
            f"  cost          at most {measured['at_most_device_hours']:.2f} device-hours "
            f"({measured['device_seconds_per_trial']:.0f} s a full trial, measured on {measured['full_trials']})",
            f"                promotion at that speed at most {promotion_hours(plan):.2f} device-hours",
            f"  storage       {measured['bytes'] / 1e6:.3g} MB of checkpoints: {kept:.3g} MB a trial",
        ]
    else:
        missing = "no full-length trial of this model, data and length has been measured"
        lines.append(f"  cost          not known yet: {missing}")
    lines += first_lines(plan)
    lines.append("  writes")
    lines += [f"    {what:<16} {where}" for what, where in plan["writes"].items()]
    return "\n".join(lines)
