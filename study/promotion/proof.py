"""Models measured for a promotion: on the one executor, whatever is finished already left out.

A promotion that was killed goes on where it was, one that lost a race measures only the new champion, and a champion
that was measured by its own promotion is not measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping

from study.evaluation.executor import StudyExecutor
from study.evaluation.ledger import FINDINGS, Ledger, image_rows
from study.evaluation.pool import Job
from study.evaluation.work import FIRST, Said, Work, record_of
from study.evaluation.worker import Models
from study.promotion.gates import Measured
from study.spec.config import StudyConfig
from study.spec.promotion import SanityGate
from study.spec.suite import SANITY_CLASSES
from trainers.data import dataset_entry, safe_name
from trainers.evaluation.record import Finding
from trainers.schema.records import Weights
from trainers.schema.suite import Suite


class Prover:
    """Measures models of one study. `write`: keep what is measured in S3. Close it; `rest` gives its workers back."""

    def __init__(self, spec: StudyConfig, bucket: str, say: Callable[[str], None], *, write: bool = True) -> None:
        self.spec, self.say = spec, say
        self._executor = StudyExecutor(spec.model, spec.resources, bucket, say, write=write)
        self.close, self.rest = self._executor.close, self._executor.rest

    def measure(self, role: str, models: Mapping[str, Weights | None]) -> dict[str, Measured]:
        """Every model (label -> its weights, None: the study's unmodified CLIP) on a role's sets."""
        found = self._executor.measure(self._suite(role), models, f"  {role}", compared=True)
        return {label: Measured(label, result, rights) for label, (result, rights) in found.items()}

    def missing(self, role: str, models: Mapping[str, Weights | None]) -> bool:
        """Whether measuring them would look at an image."""
        return self._executor.missing(self._suite(role), models, compared=True)

    def check(self, label: str, weights: Weights | None, how: SanityGate) -> tuple[Finding, ...]:
        """Findings of the sanity checks on the first confirm set with classes enough; for a model measured there."""
        ledger = self._ledger("confirm", weights)
        suite, entry = ledger.evaluation.suite, ledger.evaluation.suite.attacks[0]
        enough = [name for name in suite.datasets if dataset_entry(name, "data").num_classes >= SANITY_CLASSES]
        dataset = (enough or suite.datasets)[0]
        digest = hashlib.sha256(how.model_dump_json().encode()).hexdigest()[:8]
        name = f"sanity/{safe_name(dataset)}-{digest}.json"
        kept = ledger.place.read(name)
        if kept is None:
            model, original = ledger.evaluation.model, self._executor.facts(None)
            models = Models(model.weights_sha256, original.weights_sha256, None)
            arguments = (dataset, models, entry, suite.seed, how.samples, how.checks)
            job = Job(f"{label}: sanity checks on {dataset}", ("check", dataset), FIRST, "check", arguments)

            def keep(text: str) -> str:
                ledger.place.write(name, text.encode())
                return "finished"

            self._executor.finish([Work(job, keep, 1.0)], Said(self.say, "  sanity checks"))
            kept = ledger.place.read(name)
        assert kept is not None
        ledger.findings[dataset] = FINDINGS.validate_json(kept)
        for each in suite.datasets:
            for at in suite.attacks:
                record_of(ledger, each, at, checked=(dataset,))
        return ledger.findings[dataset]

    def files(self, role: str, weights: Weights | None) -> dict[str, bytes]:
        """A measured model's records and tables of images, by the name that they are shipped under."""
        ledger, found = self._ledger(role, weights), {}
        for dataset in ledger.evaluation.suite.datasets:
            for entry in ledger.evaluation.suite.attacks:
                record = record_of(ledger, dataset, entry, checked=tuple(ledger.findings))
                rows = image_rows(ledger.verdicts(dataset, entry))
                base = f"evaluation/{role}/{safe_name(dataset)}/{entry.label}"
                found[f"{base}.json"] = (json.dumps(record.model_dump(mode="json"), indent=1) + "\n").encode()
                found[f"{base}.csv.gz"] = rows
        return found

    def evaluation_of(self, role: str, weights: Weights | None) -> str:
        """SHA-256 of everything that decides a model's verdicts on a role's sets."""
        return self._ledger(role, weights).evaluation.digest

    def _ledger(self, role: str, weights: Weights | None) -> Ledger:
        return self._executor.ledger(self._suite(role), weights, compared=True)

    def _suite(self, role: str) -> Suite:
        return self.spec.evaluate.final.suite(role, self.spec.data_sets()[role])
