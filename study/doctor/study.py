"""Whether this machine has what a study needs: its datasets and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.checks.diagnosis import Diagnosis, failed, ok
from study.artifacts.ready import weights_finding
from study.spec.config import StudyConfig
from trainers.schema.training import ModelConfig
from trainers.table import Origin, lacking

DATASETS, ENTRIES = "datasets", "entries"
S3 = "s3://"


@dataclass(frozen=True)
class StudyNeeds:
    """Of a study file, what a machine can be asked for. `datasets`: path in the file -> name."""

    name: str
    arch: str
    pretrained: str
    datasets: Mapping[str, str]
    gpus_per_worker: float
    entries: tuple[Origin, ...] = ()  # of installed packages


def needs_of(path: Path) -> StudyNeeds:
    """Of the study file at `path`; `UserError` with every mistake if it is not one."""
    from study.spec.files import load_study

    return needs_of_study(load_study(path))


def needs_of_study(spec: StudyConfig) -> StudyNeeds:
    """Of a study."""
    from study.artifacts.datasets import named_sets
    from study.spec.outside import outside_entries

    return StudyNeeds(
        spec.name,
        spec.model.arch,
        spec.model.pretrained,
        named_sets(spec),
        float(spec.resources.gpus_per_worker),
        tuple(outside_entries(spec).values()),
    )


def check_entries(needs: StudyNeeds) -> list[Diagnosis]:
    """Whether the packages are here whose entries the study names."""
    missing = lacking(needs.entries)
    remedy = "install the same version on every node"
    return [failed(ENTRIES, text, remedy) for text in missing] or [ok(ENTRIES, ", ".join(map(str, needs.entries)))]


def check_datasets(needs: StudyNeeds) -> list[Diagnosis]:
    """Every set that cannot be loaded here, with what to do."""
    from trainers.data import dataset_entry, not_ready, safe_name
    from trainers.data.stored import prepared_place, state

    rows = [
        failed(DATASETS, text.partition("; run: ")[0], f"run: {text.partition('; run: ')[2] or 'agft data list'}")
        for text in not_ready(needs.datasets)
    ]
    place = prepared_place()
    if place.startswith(S3) and not rows:
        from study.artifacts.datasets import prepared_in_s3

        there = prepared_in_s3(place)
        for path, name in needs.datasets.items():
            entry = dataset_entry(name, path)
            if state(entry) not in ("drawn", "prepared") and safe_name(name) not in there:
                rows.append(failed(DATASETS, f"{path}: {name!r} is not in {place}", f"run: agft data prepare {name}"))
    return rows or [ok(DATASETS, f"{', '.join(dict.fromkeys(needs.datasets.values()))}: can be loaded")]


def check_weights(needs: StudyNeeds) -> list[Diagnosis]:
    """Whether the weights are here and fit, or can be fetched. No model is made of them."""
    return [weights_finding(ModelConfig(arch=needs.arch, pretrained=needs.pretrained))]
