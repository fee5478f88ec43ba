"""What a study would do, worked out without starting it."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from optuna.distributions import CategoricalDistribution

from infra.process import usable_cores
from study.artifacts.datasets import named_sets
from study.artifacts.ready import missing_sets, silent_services, trials_here
from study.console import counted
from study.plan.cost import short, study_passes
from study.plan.estimate import estimate, estimate_lines
from study.plan.idle import knowledge_line, knowledge_notes, knowledge_plan
from study.search.prior import earlier_studies, resolve
from study.search.proposals import first_proposals, given
from study.search.stopping import rungs
from study.spec.config import SAMPLERS, STOPPING, StudyConfig
from study.spec.dimension import Dimension, shown
from study.spec.outside import outside_entries
from study.spec.starts import given_trials
from study.store.database import database_url
from study.store.rows import TrialRow
from study.store.store import StudyStore, study_names
from trainers.data import remarks as data_remarks
from trainers.schema.units import parse_fraction
from trainers.table import Table

# What a valid study file says without any effect, or with one that its writer may not expect.


def remarks(spec: StudyConfig, starts: int = 0) -> list[str]:
    """One line each, `path: rule`. `starts`: trials that are given, which come before anything is proposed."""
    whose = [f"{path}: {origin}, file {(origin.sha256 or '?')[:12]}" for path, origin in outside_entries(spec).items()]
    return [*_unread(spec), *_steps(spec), *_sampler(spec, starts), *_stopping(spec), *_slow(spec), *whose]


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
    if spec.prior and spec.prior.observe and not spec.sampler.row.observes:
        readers = [each for each, row in SAMPLERS.items() if row.observes]
        yield f"prior.observe: has no effect with {spec.sampler.name}; read by {' and '.join(readers)}"
    if spec.sampler.row.exhaustive:
        for name in ("warm_starts", "prior"):
            if name in spec.model_fields_set and getattr(spec, name):
                yield f"{name}: has no effect with a grid, whose points are all the trials there are"


def _steps(spec: StudyConfig) -> Iterator[str]:
    """Ranges whose steps from `low` do not meet `high`."""
    for dimension in spec.dimensions():
        entry = spec.search.get(dimension.path)
        inner = entry.get(dimension.wrapper, entry) if isinstance(entry, Mapping) else {}
        if inner.get("step") is None:
            continue
        last, high, step = dimension.distribution.high, parse_fraction(inner["high"]), parse_fraction(inner["step"])
        if not math.isclose(last, high):
            yield f"search.{dimension.path}.step: steps of {step:g} from low end at {last:g}, not at {high:g}"


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


def _slow(spec: StudyConfig) -> Iterator[str]:
    """Arithmetic that leaves most of a GPU idle."""
    if spec.resources.gpus_per_worker and spec.train.precision == "fp32":
        yield (
            "train.precision: fp32 leaves a GPU's tensor cores idle (by its data sheet an A100 multiplies at 19.5 "
            "TFLOP/s in fp32, at 156 in tf32, at 312 in bf16); auto takes bf16 where the GPU has it"
        )
    if spec.resources.gpus_per_worker == 0 and spec.train.precision in ("bf16", "fp16"):
        yield f"train.precision: {spec.train.precision} on a CPU saves no time; auto takes fp32 there"


# What `agft plan` says of the search: who proposes, over which space, the first trials, and what has no effect.

FIRST = 5  # trials that are shown at least; given ones are shown all, and two drawn ones with them


def search_plan(spec: StudyConfig, home: Path) -> dict[str, Any]:
    """As JSON values. The first samples are those that the study will draw (same seeds, same sampler)."""
    dimensions = spec.dimensions()
    prior = resolve(spec, earlier_studies(database_url(home), spec))
    starts = given(spec, dimensions, prior.starts)
    blind = 0 if prior.observed else _blind(spec)
    count = min(spec.budget.trials, max(FIRST, len(starts) + 2), max(blind, len(starts)))
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
            *prior.notes, *remarks(spec, len(starts)), *data_remarks(named_sets(spec)),
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
    cores = usable_cores()
    need = wanted.workers * wanted.cpus_per_worker
    stops = rungs(spec.scheduler, spec.train.epochs)
    slots, lack = (None, "") if os.environ.get("RAY_ADDRESS") else trials_here(spec)
    here = {} if slots is None else {"cores": cores, "trials_at_once": min(slots, spec.budget.trials), "lack": lack}
    exists, measured = spec.name in study_names(database_url(home)), measured_cost(spec, home)
    search = search_plan(spec, home)
    devices = wanted.workers * (wanted.gpus_per_worker or 1.0)
    knowledge = knowledge_plan(
        spec, slots=slots or None,
        stored=StudyStore(database_url(home), spec.name).load().lag if exists else None,
        full_seconds=measured["device_seconds_per_trial"] / devices if measured else None,
    )  # fmt: skip
    passes = study_passes(spec)
    estimated = None if measured else estimate(spec, passes)
    network = estimated.get("notes", []) if estimated else []
    search["notes"] += [*knowledge_notes(knowledge), *network, *missing_sets(spec), *silent_services(os.environ)]
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
        "passes": passes,
        "measured": measured,
        "estimated": estimated,
        "writes": {
            "study database": "AGFT_STUDY_DB" if os.environ.get("AGFT_STUDY_DB") else str(home / "studies.db"),
            "checkpoints": f"s3://BUCKET/studies/{spec.name}-CREATED/trials/NUMBER/ (latest and best, one object each)",
            "mlflow": "experiment agft: one run for the study, one nested run a trial",
            "promotion": f"s3://BUCKET/models/{spec.promote.model_name}/VERSION/",
        },
    }


def measured_cost(spec: StudyConfig, home: Path) -> dict[str, Any] | None:
    """Device-hours and bytes, from the store's full-length trials of the same model, data and length; where there are
    none yet, from the epochs that trials of this model and data had so far.

    Every trial keeps its newest state and its best weights, also one that is stopped early.
    """
    url, wanted = database_url(home), spec.resources
    trials: list[tuple[int, TrialRow]] = []
    for name in study_names(url):
        store = StudyStore(url, name)
        other = store.load().spec
        if (other.model, other.data.train, other.train.samples_per_epoch) == (
            spec.model, spec.data.train, spec.train.samples_per_epoch,
        ):  # fmt: skip
            trials += [(other.train.epochs, row) for row in store.trials()]
    full = [row for epochs, row in trials if row.state == "complete" and epochs == spec.train.epochs]
    begun = [row for _, row in trials if row.epochs]
    if not begun and not full:
        return None
    if full:
        mean = sum(row.device_seconds for row in full) / len(full)
    else:
        devices = wanted.workers * (wanted.gpus_per_worker or 1.0)
        epochs = [record.train_seconds + record.eval_seconds for row in begun for record in row.epochs]
        mean = devices * spec.train.epochs * sum(epochs) / len(epochs)
    kept = [(row.latest.bytes or 0) + (row.best.bytes or 0) for row in full or begun if row.latest and row.best]
    size = max(kept, default=0)
    return {"full_trials": len(full), "epochs": 0 if full else len(epochs), "device_seconds_per_trial": mean,
            "at_most_device_hours": mean * spec.budget.trials / 3600,
            "bytes_per_trial": size, "bytes": size * spec.budget.trials}  # fmt: skip


def promotion_hours(plan: Mapping[str, Any]) -> float:
    """Of one device, if its passes take as long as those of the measured trials, waiting and loading included."""
    passes, seconds = plan["passes"], plan["measured"]["device_seconds_per_trial"]
    return float(passes["promotion"] * seconds / (passes["training"] + passes["evaluations"]) / 3600)


def cost_lines(plan: Mapping[str, Any]) -> list[str]:
    """For a person: hours and bytes, measured or else estimated."""
    measured = plan["measured"]
    if measured is None:
        return estimate_lines(plan["estimated"])
    kept, count = measured["bytes_per_trial"] / 1e6, measured["full_trials"]
    basis = f"measured on {count}" if count else f"by {measured['epochs']} measured epochs"
    return [
        f"  cost          at most {measured['at_most_device_hours']:.2f} device-hours "
        f"({measured['device_seconds_per_trial']:.0f} s a full trial, {basis})",
        f"                promotion at that speed at most {promotion_hours(plan):.2f} device-hours",
        f"  storage       {measured['bytes'] / 1e6:.3g} MB of checkpoints: {kept:.3g} MB a trial",
    ]


def plan_text(plan: dict[str, Any]) -> str:
    """For a person."""
    lines = [f"study {plan['study']}" + (" (exists: `agft resume` goes on with it)" if plan["exists"] else "")]
    stops = f"early stopping after epoch {', '.join(map(str, plan['rungs']))}" if plan["rungs"] else "no early stopping"
    lines.append(f"  trials        {plan['trials']} of {counted(plan['epochs'], 'epochs')}, {stops}")
    lines += search_lines(plan)
    need = ", ".join(f"{amount:g} {name}" for name, amount in plan["trial_needs"].items() if amount)
    lines.append(f"  a trial needs {need}")
    if plan["this_machine"]:
        here = plan["this_machine"]
        room = here["lack"].removeprefix("resources: ") or f"{counted(here['trials_at_once'], 'trials')} at once"
        lines.append(f"  this machine  {here['cores']} cores: {room}")
    lines.append(f"  knowledge     {knowledge_line(plan['knowledge'])}")
    passes = {name: short(value) for name, value in plan["passes"].items()}
    lines.append(
        f"  image passes  a full trial {passes['training']} to train, at most {passes['evaluations']} to evaluate"
    )
    lines.append(f"                promotion at most {passes['promotion']}")
    lines += cost_lines(plan)
    lines += first_lines(plan)
    lines.append("  writes")
    lines += [f"    {what:<16} {where}" for what, where in plan["writes"].items()]
    return "\n".join(lines)
