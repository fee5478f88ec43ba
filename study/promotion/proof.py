"""Models measured for a promotion: on the machinery of `agft evaluate`, whatever is finished already left out.

Verdicts are kept in S3 below `evaluations/`, in a folder named after everything that decides them (weights, suite,
kind of device). So a promotion that was killed goes on where it was, one that lost a race measures only the new
champion, and a champion that was measured by its own promotion is not measured again. All of it may be deleted.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from pydantic import TypeAdapter

from infra import storage
from infra.cluster.cluster import node_capacities
from study.artifacts.sources import use_s3_weights
from study.evaluation.evaluate import (
    FIRST,
    PAUSE_SECONDS,
    Progress,
    Work,
    finish,
    missing_looks,
    missing_work,
    record_of,
)
from study.evaluation.ledger import Ledger, image_rows
from study.evaluation.place import Folder, Place, Prefix
from study.evaluation.pool import Job, Pool, hands_for
from study.evaluation.units import Evaluation
from study.evaluation.worker import Models
from study.promotion.gates import Measured
from study.results.rights import measurement, rights_of
from study.spec.config import StudyConfig
from study.spec.evaluation import entries
from study.spec.promotion import SanityGate
from study.spec.suite import SANITY_CLASSES
from trainers.data import dataset_entry, safe_name
from trainers.evaluation.record import Finding, ModelFacts
from trainers.evaluation.summary import model_facts
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP
from trainers.model.weights import load_weights, save_weights
from trainers.schema.records import Weights
from trainers.schema.suite import Suite

FINDINGS = TypeAdapter(tuple[Finding, ...])


class _Aside:
    """Reads what is in S3, writes beside it on the disk: for a dry run, which changes nothing."""

    def __init__(self, shared: Place, own: Folder) -> None:
        self.shared, self.own = shared, own

    def read(self, name: str) -> bytes | None:
        found = self.own.read(name)
        return self.shared.read(name) if found is None else found

    def write(self, name: str, data: bytes) -> None:
        self.own.write(name, data)

    def at(self, name: str = "") -> str:
        return self.own.at(name)


class _Lines(Progress):
    """An evaluation's progress, said by whoever says everything else: how much is left of what takes long."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say = say

    def __call__(self, text: str) -> None:
        if self._finished < self._number and time.monotonic() - self._begun > PAUSE_SECONDS:
            self.say(f"  {text.partition('  ')[0]}")


@dataclass
class Prover:
    """Measures models of one study. `write`: keep what is measured in S3. Close it; `rest` gives its workers back."""

    spec: StudyConfig
    bucket: str
    say: Callable[[str], None]
    write: bool = True
    _facts: dict[str, ModelFacts] = field(default_factory=dict)
    _files: dict[str, Path] = field(default_factory=dict)
    _ledgers: dict[tuple[str, str], Ledger] = field(default_factory=dict)
    _pool: Pool | None = None

    def __post_init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="agft-promote-")

    def close(self) -> None:
        """End the workers and delete what a dry run kept."""
        self.rest()
        self._scratch.cleanup()

    def rest(self) -> None:
        """End the workers; the next measurement starts others."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def measure(self, role: str, models: Mapping[str, Weights | None]) -> dict[str, Measured]:
        """Every model (label -> its weights, None: the study's unmodified CLIP) on a role's sets."""
        ledgers = {label: self._ledger(role, label, weights) for label, weights in models.items()}
        work = missing_looks(list(ledgers.values()))
        self._finish(work)
        self._finish(
            [each for ledger in ledgers.values() for each in missing_work(ledger, checked=(), batch_size=None)]
        )
        return {label: self._measured(label, ledger) for label, ledger in ledgers.items()}

    def missing(self, role: str, models: Mapping[str, Weights | None]) -> bool:
        """Whether measuring them would look at an image."""
        for ledger in (self._ledger(role, label, weights) for label, weights in models.items()):
            suite = ledger.evaluation.suite
            if any(name not in ledger.looked for name in suite.datasets):
                return True
            if any(ledger.missing(name, entry) for name in suite.datasets for entry in suite.attacks):
                return True
        return False

    def check(self, label: str, weights: Weights | None, how: SanityGate) -> tuple[Finding, ...]:
        """Findings of the sanity checks on the first confirm set with classes enough; for a model measured there."""
        ledger = self._ledger("confirm", label, weights)
        suite, entry = ledger.evaluation.suite, ledger.evaluation.suite.attacks[0]
        enough = [name for name in suite.datasets if dataset_entry(name, "data").num_classes >= SANITY_CLASSES]
        dataset = (enough or suite.datasets)[0]
        digest = hashlib.sha256(how.model_dump_json().encode()).hexdigest()[:8]
        name = f"sanity/{safe_name(dataset)}-{digest}.json"
        kept = ledger.place.read(name)
        if kept is None:
            facts = ledger.evaluation
            models = Models(facts.model.weights_sha256, self._model(None).weights_sha256, None)
            arguments = (dataset, models, entry, suite.seed, how.samples, how.checks)
            job = Job(f"{label}: sanity checks on {dataset}", ("check", dataset), FIRST, "check", arguments)

            def keep(text: str) -> str:
                ledger.place.write(name, text.encode())
                return "finished"

            self._finish([Work(job, keep, 1.0)])
            kept = ledger.place.read(name)
        assert kept is not None
        ledger.findings[dataset] = FINDINGS.validate_json(kept)
        for each in suite.datasets:
            for at in suite.attacks:
                record_of(ledger, each, at, checked=(dataset,))
        return ledger.findings[dataset]

    def files(self, role: str, label: str, weights: Weights | None) -> dict[str, bytes]:
        """A measured model's records and tables of images, by the name that they are shipped under."""
        ledger, found = self._ledger(role, label, weights), {}
        for dataset in ledger.evaluation.suite.datasets:
            for entry in ledger.evaluation.suite.attacks:
                record = record_of(ledger, dataset, entry, checked=tuple(ledger.findings))
                rows = image_rows(ledger.verdicts(dataset, entry))
                base = f"evaluation/{role}/{safe_name(dataset)}/{entry.label}"
                found[f"{base}.json"] = (json.dumps(record.model_dump(mode="json"), indent=1) + "\n").encode()
                found[f"{base}.csv.gz"] = rows
        return found

    def evaluation_of(self, role: str, label: str, weights: Weights | None) -> str:
        """SHA-256 of everything that decides a model's verdicts on a role's sets."""
        return self._ledger(role, label, weights).evaluation.digest

    def _measured(self, label: str, ledger: Ledger) -> Measured:
        suite = ledger.evaluation.suite
        rights = {
            name: rights_of([(entry, ledger.verdicts(name, entry)) for entry in suite.attacks])
            for name in suite.datasets
        }
        result = measurement(rights)
        if len(suite.attacks) > 1:
            result["attacks"] = {
                entry.label: measurement({name: rights_of([(entry, ledger.verdicts(name, entry))]) for name in rights})
                for entry in suite.attacks
            }
        return Measured(label, result, rights)

    def _finish(self, work: Sequence[Work]) -> None:
        if not work:
            return
        if self._pool is not None and self._files.keys() - self._pool.weights.keys():
            self.rest()  # workers are told of models when they start
        if self._pool is None:
            resources = self.spec.resources
            jobs = max(len(work), 2 * len(self._ledgers))
            hands = hands_for(
                node_capacities(), jobs, workers=None, cpus=resources.cpus_per_worker, gpus=resources.gpus_per_worker
            )
            self._pool = Pool(
                hands, {sha256: ray.put(path.read_bytes()) for sha256, path in self._files.items()}, self.say
            )
        finish(work, self._pool.run, _Lines(self.say))

    def _ledger(self, role: str, label: str, weights: Weights | None) -> Ledger:
        key = (role, weights.sha256 if weights else "")
        if key not in self._ledgers:
            model, original = self._model(weights), self._model(None)
            evaluation = Evaluation(model, original, None, self._suite(role), self._device())
            shared = Prefix(f"s3://{self.bucket}/evaluations/{evaluation.name}")
            own = Folder(Path(self._scratch.name) / evaluation.name)
            place = shared if self.write else _Aside(shared, own)
            self._ledgers[key] = Ledger(evaluation, place, self.say, lambda: None)
            self._ledgers[key].open()
        return self._ledgers[key]

    def _suite(self, role: str) -> Suite:
        how = self.spec.evaluate.final
        return Suite(
            name=role, datasets=self.spec.data_sets()[role], attacks=entries(how), protocol=how.protocol, seed=how.seed
        )

    def _device(self) -> Any:
        return "cuda" if self.spec.resources.gpus_per_worker else "cpu"

    def _model(self, weights: Weights | None) -> ModelFacts:
        """A model's facts, its label made of its weights, so that whoever measures it finds what is kept."""
        key = weights.sha256 if weights else ""
        if key not in self._facts:
            path = Path(self._scratch.name) / "weights" / f"{key or 'unmodified'}.safetensors"
            if weights is None:
                use_s3_weights()
                clip = load_clip(self.spec.model)
                save_weights(path, clip)
            else:
                storage.get_file(weights.uri, path, sha256=weights.sha256)
                clip = load_weights(path)
            facts = model_facts(clip, RobustCLIP(clip), "model")
            self._files.setdefault(facts.weights_sha256, path)
            self._facts[key] = facts.model_copy(update={"label": facts.weights_sha256[:12]})
        return self._facts[key]
