"""What `agft plan` says of the search: who proposes, over which space, the first trials, and what has no effect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution

from study.config import SamplerConfig, StudyConfig
from study.database import database_url
from study.dimension import Dimension, shown
from study.prior import earlier_studies, resolve
from study.remarks import remarks
from study.samplers import directions, given, proposals
from study.starts import given_trials

__all__ = ["first_lines", "search_lines", "search_plan"]

FIRST = 5  # trials that are shown at least; given ones are shown all, and two drawn ones with them
WORDS: Mapping[str, Callable[[SamplerConfig], str]] = {
    "tpe": lambda s: f"tpe: {s.startup_trials} trials drawn or given, then the results are modelled",
    "cmaes": lambda s: f"cmaes: {s.startup_trials} trials drawn or given, then ranges evolve; choices are drawn",
    "nsga2": lambda s: f"nsga2: generations of {s.population or 16}, the first one drawn",
    "qmc": lambda s: "qmc: points of a scrambled Sobol sequence, whatever the results",
    "random": lambda s: "random: draws, whatever the results",
    "grid": lambda s: "grid: every combination of the choices",
}


def search_plan(spec: StudyConfig, home: Path) -> dict[str, Any]:
    """As JSON values. The first samples are those that the study will draw (same seeds, same sampler)."""
    dimensions = spec.dimensions()
    prior = resolve(spec, earlier_studies(database_url(home), spec))
    starts = given(spec, dimensions, prior.starts)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    count = min(spec.budget.trials, max(FIRST, len(starts) + 2), max(_blind(spec), len(starts)))
    samples = proposals(optuna.create_study(directions=directions(spec)), spec, count, prior.starts)
    origins = [start.origin for start in starts][:count]
    return {
        "sampler": WORDS[spec.sampler.name](spec.sampler),
        "goal": list(spec.goal.at({}).names),
        "space": [{"path": d.path, "values": _values(d), "when": _when(d)} for d in dimensions],
        "first_samples": [params for _, params in samples],
        "origins": origins + ["drawn"] * (len(samples) - len(origins)),
        "notes": [
            *(f"{start.origin}: {path}: its value is outside the range, sampled instead"
              for start in given_trials(spec, dimensions) for path in start.left_out),
            *prior.notes, *remarks(spec, len(starts)),
        ],
    }  # fmt: skip


def _blind(spec: StudyConfig) -> int:
    """How many first trials cannot depend on results."""
    sampler = spec.sampler
    blind = {"tpe": sampler.startup_trials, "cmaes": sampler.startup_trials, "nsga2": sampler.population or 16}
    return blind.get(sampler.name, spec.budget.trials)


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
