"""What is finished of an evaluation, and where it is: the one truth about how far it is.

evaluation.json                          what is evaluated (its SHA-256 is in the folder's name)
datasets/DATASET.json                    its facts, and which images every unit has
units/DATASET/ATTACK/0000.safetensors    verdicts on up to 512 images
sanity/DATASET.json                      findings of the sanity checks
records/DATASET/ATTACK.json              the record, made of the units whenever they are complete
records/DATASET/ATTACK.csv.gz            a row an image and radius
summary.json                             the table
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import TypeAdapter
from torch import Tensor

from study.errors import StudyFailed, UserError
from study.evaluation.place import Place
from study.evaluation.units import Evaluation, Looked, Unit, size, units
from trainers.data import safe_name
from trainers.evaluation.readings import READINGS
from trainers.evaluation.record import DatasetFacts, EvaluationRecord, Finding
from trainers.evaluation.summary import at_radii, clean_result
from trainers.evaluation.verdicts import Verdicts, join_verdicts, packed_logits, unpack_verdicts
from trainers.schema.attacks import AutoAttack, Composed, EvalAttackParameters
from trainers.schema.suite import AttackAt
from trainers.schema.units import eps_label

READERS = 8  # files read at a time
FINDINGS = TypeAdapter(tuple[Finding, ...])
Facts = dict[str, Any]
Logits = tuple[Tensor, Tensor]  # fp32 [n, K] at the model's own scale, labels int64 [n]
Content = TypeVar("Content")


class Damaged(ValueError):
    """A file that is not what it should be; it is computed again."""


class Ledger:
    """One evaluation and its place. `say` gets a line for every file that has to be made again; `check` raises when the
    place is no longer ours."""

    def __init__(
        self, evaluation: Evaluation, place: Place, say: Callable[[str], None], check: Callable[[], None]
    ) -> None:
        self.evaluation, self.place, self.say, self.check = evaluation, place, say, check
        self.looked: dict[str, Looked] = {}
        self.findings: dict[str, tuple[Finding, ...]] = {}
        self.facts: dict[str, Facts] = {}  # how each finished unit was made, by its name

    def open(self) -> None:
        """Read what is there. A place of another evaluation is refused."""
        spec = self._parsed("evaluation.json", json.loads)
        if spec is None:
            self._write("evaluation.json", self.evaluation.spec())
        elif spec != self.evaluation.spec():
            raise UserError(f"{self.place.at('evaluation.json')}: of another evaluation; move it away")
        for dataset in self.evaluation.suite.datasets:
            looked = self._parsed(f"datasets/{safe_name(dataset)}.json", Looked.model_validate_json)
            if looked is not None:
                self.looked[dataset] = looked
            findings = self._parsed(f"sanity/{safe_name(dataset)}.json", FINDINGS.validate_json)
            if findings is not None:
                self.findings[dataset] = findings
        planned = [unit for name in self.looked for entry in self.evaluation.suite.attacks for unit in
                   self.units(name, entry)]  # fmt: skip
        with ThreadPoolExecutor(READERS) as pool:
            for unit, facts in zip(planned, pool.map(self._finished, planned), strict=True):
                if facts is not None:
                    self.facts[unit.name] = facts

    def units(self, dataset: str, entry: AttackAt) -> tuple[Unit, ...]:
        """All units of a dataset, which somebody has looked at, under an attack."""
        return units(dataset, entry, self.looked[dataset].facts[size(entry)].sample)

    def missing(self, dataset: str, entry: AttackAt) -> list[Unit]:
        """Units that have to be computed."""
        return [unit for unit in self.units(dataset, entry) if unit.name not in self.facts]

    def keep_looked(self, dataset: str, looked: Looked) -> None:
        self.looked[dataset] = looked
        self._write(f"datasets/{safe_name(dataset)}.json", looked.model_dump(mode="json"))

    def keep_findings(self, dataset: str, findings: Sequence[Finding]) -> None:
        self.findings[dataset] = tuple(findings)
        self._write(f"sanity/{safe_name(dataset)}.json", [each.model_dump(mode="json") for each in findings])

    def keep_unit(self, unit: Unit, data: bytes) -> Verdicts:
        """Write a unit's result; `UserError` if the worker that made it has another dataset under this name."""
        verdicts, facts = unpack_verdicts(data, unit.name)
        expected = self.looked[unit.dataset].facts[size(unit.entry)].content_sha256
        if facts["content_sha256"] != expected:
            raise UserError(
                f"datasets: {unit.dataset!r} on {facts['worker']} is not what it was when {self.place.at('')} was "
                "begun: its images, labels or names have changed, or nodes differ; choose another --out"
            )
        self.place.write(_file(unit), data)
        self.facts[unit.name] = facts
        return verdicts

    def verdicts(self, dataset: str, entry: AttackAt) -> Verdicts:
        """Of all images of the sample, from the files."""
        try:
            with ThreadPoolExecutor(READERS) as pool:
                return join_verdicts([part for part, _ in pool.map(self._read, self.units(dataset, entry))])
        except (Damaged, FileNotFoundError) as error:
            raise StudyFailed(f"{error}: damaged since it was written; the same command computes it again") from error

    def logits(self, dataset: str, entry: AttackAt) -> Logits:
        """Of all images of the sample, where units were made with logits, from the files."""
        units = self.units(dataset, entry)
        label = self.verdicts(dataset, entry).label  # checks every byte
        found = [self.place.read(_file(unit)) for unit in units]
        return torch.cat([packed_logits(data) for data in found if data is not None]), label

    def record(self, dataset: str, entry: AttackAt, rows: bytes) -> EvaluationRecord | None:
        """The record that is there, if it is whole and `rows` are beside it."""
        try:
            found = self.place.read(f"{_record(dataset, entry)}.json")
            if found is None or self.place.read(f"{_record(dataset, entry)}.csv.gz") != rows:
                return None
            return EvaluationRecord.model_validate_json(found)
        except ValueError:
            return None

    def keep_record(self, dataset: str, entry: AttackAt, record: EvaluationRecord, rows: bytes) -> None:
        self._write(f"{_record(dataset, entry)}.json", record.model_dump(mode="json"))
        self.place.write(f"{_record(dataset, entry)}.csv.gz", rows)

    def keep_summary(self, summary: Any) -> None:
        self._write("summary.json", summary)

    def _finished(self, unit: Unit) -> Facts | None:
        """How a unit was made, if it is there and right."""
        try:
            return self._read(unit)[1]
        except FileNotFoundError:
            return None
        except Damaged as error:
            self.say(f"{error}; it is computed again")
            return None

    def _read(self, unit: Unit) -> tuple[Verdicts, Facts]:
        name = _file(unit)
        try:
            data = self.place.read(name)
            if data is None:
                raise FileNotFoundError(self.place.at(name))
            verdicts, facts = unpack_verdicts(data, self.place.at(name))
        except ValueError as error:
            raise Damaged(str(error)) from error
        looked, key = self.looked[unit.dataset], size(unit.entry)
        index = hashlib.sha256(verdicts.index.numpy().astype("<i8").tobytes()).hexdigest()
        wanted = (self.evaluation.digest, unit.name, looked.facts[key].content_sha256, looked.indices[key][unit.number])
        if (facts.get("evaluation"), facts.get("unit"), facts.get("content_sha256"), index) != wanted:
            raise Damaged(f"{self.place.at(name)}: of another evaluation, dataset or sample")
        return verdicts, facts

    def _parsed(self, name: str, parse: Callable[[bytes], Content]) -> Content | None:
        """What is in a file; None if there is none, or none that makes sense."""
        try:
            data = self.place.read(name)
            return None if data is None else parse(data)
        except ValueError as error:
            self.say(f"{self.place.at(name)}: damaged ({str(error).splitlines()[0]}); it is made again")
            return None

    def _write(self, name: str, value: Any) -> None:
        self.place.write(name, (json.dumps(value, indent=1) + "\n").encode())


def _file(unit: Unit) -> str:
    return f"units/{unit.name}.safetensors"


def _record(dataset: str, entry: AttackAt) -> str:
    return f"records/{safe_name(dataset)}/{entry.label}"


# From a finished dataset and attack to its record, and to a table with a row for every image and radius.

COLUMNS = (
    "index", "label", "eps", *(f"{kind}_{name}" for kind in ("clean", "adversarial") for name in READINGS)
)  # fmt: skip


def make_record(
    evaluation: Evaluation,
    entry: AttackAt,
    dataset: DatasetFacts,
    verdicts: Verdicts,
    *,
    findings: Sequence[Finding],
    made: Sequence[Mapping[str, Any]],
    provenance: Mapping[str, Any],
) -> EvaluationRecord:
    """The record of a dataset under an attack. `made`: how each unit was; `provenance`: of the driver."""
    clean, evidence = clean_result(verdicts)
    return EvaluationRecord(
        model=evaluation.model,
        dataset=dataset,
        attack=entry,
        attack_label=entry.label,
        attack_parts=attack_parts(entry.attack, entry.norm, dataset.num_classes),
        protocol=evaluation.suite.protocol,
        seed=evaluation.suite.seed,
        micro_batch=made[0]["micro_batch"],
        device=", ".join(sorted({each["device"] for each in made})),
        original=evaluation.original,
        surrogate=evaluation.surrogate if entry.attack.name == "transfer" else None,
        clean=clean,
        clean_evidence=evidence,
        radii=at_radii(verdicts),
        doubts=verdicts.doubts,
        sanity=tuple(findings),
        run={
            "suite": evaluation.suite.name,
            "evaluation": evaluation.digest,
            "units": len(made),
            "compute_seconds": round(sum(each["seconds"] for each in made), 3),
            "images_forwarded": sum(each["images_forwarded"] for each in made),
            "workers": sorted({each["worker"] for each in made}),
            "started_ms": min(each["started_ms"] for each in made),
            "ended_ms": max(each["started_ms"] + int(1000 * each["seconds"]) for each in made),
            "provenance": dict(provenance),
        },
    )


def attack_parts(attack: EvalAttackParameters, norm: str, num_classes: int) -> tuple[str, ...]:
    """What runs, where an attack is made of others."""
    if isinstance(attack, AutoAttack):
        return attack.parts(num_classes)
    if isinstance(attack, Composed):
        return tuple(part.label for part in attack.components(norm=norm, num_classes=num_classes))
    return ()


def image_rows(verdicts: Verdicts) -> bytes:
    """A gzipped CSV with COLUMNS: every image at every radius, in dataset order; equal for equal verdicts.

    Numbers have as many digits as their fp32 value needs; an overlap without an original model is empty.
    """
    text = io.StringIO(newline="")
    text.write(",".join(COLUMNS) + "\n")
    index, label = (values.numpy().astype(str) for values in (verdicts.index, verdicts.label))
    clean = [_words(getattr(verdicts.clean, name).numpy()) for name in READINGS]
    for row, eps in enumerate(verdicts.eps):
        attacked = [_words(getattr(verdicts.attacked, name)[row].numpy()) for name in READINGS]
        columns = [index, label, np.full(len(index), eps_label(eps)), *clean, *attacked]
        for values in zip(*columns, strict=True):
            text.write(",".join(values) + "\n")
    return gzip.compress(text.getvalue().encode(), mtime=0)


def _words(values: Any) -> Any:
    words = values.astype(str)
    return np.where(np.isnan(values), "", words) if values.dtype.kind == "f" else words
