"""The entries of installed packages that a study names: for its plan, its provenance, and the machines that run it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from study.spec.config import SAMPLERS, STOPPING, StudyConfig
from study.spec.promotion import SELECTION, parse_preference
from trainers.data import DATASETS
from trainers.objectives import METHODS
from trainers.schema.attacks import EVAL_ATTACKS
from trainers.schema.checks import CHECKS
from trainers.schema.training import ATTACKS
from trainers.table import Origin, Table


def outside_entries(spec: StudyConfig) -> dict[str, Origin]:
    """Whose they are, by the path in the study file."""
    return _origins(_named(spec))


def with_drivers(spec: StudyConfig, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """A worker's provenance, which has the entries that the worker uses, with those that the driver uses for it."""
    own = [origin.record() for origin in _origins(_by_driver(spec)).values()]
    return {**provenance, "entries": [*provenance.get("entries", ()), *own]}


def _origins(named: Iterator[tuple[str, Table[Any], str]]) -> dict[str, Origin]:
    found = ((path, table.origin(name)) for path, table, name in named)
    return {path: origin for path, origin in found if origin is not None}


def _by_driver(spec: StudyConfig) -> Iterator[tuple[str, Table[Any], str]]:
    yield "sampler.name", SAMPLERS, spec.sampler.name
    yield "scheduler.name", STOPPING, spec.scheduler.name


def _named(spec: StudyConfig) -> Iterator[tuple[str, Table[Any], str]]:
    yield "method.name", METHODS, spec.method.name
    for index, method in enumerate(spec.alternatives):
        yield f"alternatives.{index}.name", METHODS, method.name
    yield "attack.name", ATTACKS, spec.attack.name
    searched = spec.search.get("attack.name")
    for name in searched.get("choices", ()) if isinstance(searched, Mapping) else ():
        yield "search.attack.name", ATTACKS, name
    for role, names in spec.data_sets().items():
        for index, name in enumerate(names):
            yield f"data.{role}" if role == "train" else f"data.{role}.{index}", DATASETS, name
    for index, entry in enumerate(spec.evaluate.final.attacks):
        yield f"evaluate.final.attacks.{index}.attack.name", EVAL_ATTACKS, entry.attack.name
    yield from _by_driver(spec)
    if spec.promote.preference is not None:
        yield "promote.preference", SELECTION, parse_preference(spec.promote.preference).rule
    for name in (spec.promote.gates.sanity and spec.promote.gates.sanity.checks) or ():
        yield "promote.gates.sanity.checks", CHECKS, name
