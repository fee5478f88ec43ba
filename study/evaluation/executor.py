"""The one executor: everything that measures a model does it here, on a pool of workers, and never twice.

`Executor` has the workers and does what is missing of any ledgers (`agft evaluate` brings its own). `StudyExecutor`
measures the models of a study: the unmodified CLIP before it begins, candidates and the winner of a promotion, the
checkpoints of a comparison, and logits for calibration. What it finds is kept in S3 below `evaluations/`, in a folder
named after everything that decides the verdicts (weights, suite, kind of device). So whatever was killed goes on where
it was, and a model that somebody has measured under the same suite is not measured again. All of it may be deleted.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

import ray

from infra import storage
from infra.cluster.cluster import node_capacities
from study.artifacts.sources import use_s3_weights
from study.errors import UserError
from study.evaluation.ledger import Ledger, Logits
from study.evaluation.place import Aside, Folder, Prefix
from study.evaluation.pool import Job, Pool, hands_for
from study.evaluation.units import Device, Evaluation, planned
from study.evaluation.work import Progress, Said, Work, finish, missing_looks, missing_work
from study.results.ranking import Measurement
from study.results.rights import Rights, measurement, rights_of
from study.spec.config import ResourcesConfig, StudyConfig
from trainers.evaluation.record import ModelFacts
from trainers.evaluation.summary import model_facts
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP
from trainers.model.weights import load_weights, save_weights
from trainers.schema.records import Weights
from trainers.schema.suite import Suite
from trainers.schema.training import ModelConfig


class Executor:
    """Workers that are there while there is work; whoever makes it closes it.

    `workers`, `cpus`, `gpus`: how many, and what each one holds; None leaves it to us. `say` gets remarks, `tick` is
    called often. `packed`: SHA-256 of a model's weights -> what gives its weights file.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        workers: int | None = None,
        cpus: float | None = None,
        gpus: float | None = None,
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.say, self.tick = say, tick
        self.packed: dict[str, Callable[[], bytes]] = {}
        self._asked: dict[str, Any] = {"workers": workers, "cpus": cpus, "gpus": gpus}
        self._pool: Pool | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, whatever they are doing."""
        self.rest()

    def rest(self) -> None:
        """End the workers; the next work starts others."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def complete(
        self, ledgers: Sequence[Ledger], progress: Progress, *, looking: Progress | None = None, **how: Any
    ) -> None:
        """Everything of these evaluations that is not finished. `how`: as in `missing_work`; `looking`: what tells how
        far the looks are, without which units cannot be told apart."""
        most = sum(planned(ledger.evaluation.suite) for ledger in ledgers)
        self.finish(missing_looks(ledgers), looking or progress, jobs=most)
        self.finish([each for ledger in ledgers for each in missing_work(ledger, **how)], progress)

    def finish(self, work: Sequence[Work], progress: Progress, *, jobs: int = 0) -> None:
        """All of it. `jobs`: how many may follow, so that workers are started for them too."""
        if not work:
            return
        if self._pool is not None and self.packed.keys() - self._pool.weights.keys():
            self.rest()  # workers are told of models when they start
        if self._pool is None:
            hands = hands_for(node_capacities(), max(len(work), jobs), **self._asked)
            self.say(f"workers: {hands}")
            weights = {sha256: ray.put(packed()) for sha256, packed in self.packed.items()}
            self._pool = Pool(hands, weights, self.say, self.tick)
        finish(work, self._pool.run, progress)


class StudyExecutor(Executor):
    """Measures models by their label: a weights file, or None for the unmodified `model`.

    `write`: keep in S3 what is found; else read what is there and change nothing. Whatever it says is indented as what
    was last measured is, be it a part of something greater.
    """

    def __init__(
        self,
        model: ModelConfig,
        resources: ResourcesConfig,
        bucket: str,
        say: Callable[[str], None],
        *,
        write: bool = True,
    ) -> None:
        super().__init__(
            lambda text: say(f"{self._indent}{text}"), cpus=resources.cpus_per_worker, gpus=resources.gpus_per_worker
        )
        self._indent = ""
        self.model, self.bucket, self.write = model, bucket, write
        self.device: Device = "cuda" if resources.gpus_per_worker else "cpu"
        self._scratch = tempfile.TemporaryDirectory(prefix="agft-measure-")
        self._facts: dict[str, ModelFacts] = {}
        self._ledgers: dict[str, Ledger] = {}

    def close(self) -> None:
        """End the workers, and delete what was not to be kept."""
        self.rest()
        self._scratch.cleanup()

    def measure(
        self, suite: Suite, models: Mapping[str, Weights | None], what: str, *, compared: bool = False
    ) -> dict[str, tuple[Measurement, dict[str, Rights]]]:
        """Every model's accuracies on the suite, and set by set which images it got right.

        `what` is being done, for people. `compared`: with the unmodified model, for the overlap of top classes.
        """
        ledgers = {label: self.ledger(suite, weights, compared=compared) for label, weights in models.items()}
        self._complete(ledgers.values(), what)
        return {label: _result(ledger) for label, ledger in ledgers.items()}

    def missing(self, suite: Suite, models: Mapping[str, Weights | None], *, compared: bool = False) -> bool:
        """Whether measuring them would look at an image."""
        ledgers = [self.ledger(suite, weights, compared=compared) for weights in models.values()]
        return any(
            name not in ledger.looked or any(ledger.missing(name, entry) for entry in suite.attacks)
            for ledger in ledgers
            for name in suite.datasets
        )

    def logits(self, suite: Suite, models: Mapping[str, Weights | None], what: str) -> dict[str, dict[str, Logits]]:
        """Every model's logits of the images themselves, set by set; `suite` has one attack, at a radius of zero."""
        (entry,) = suite.attacks
        ledgers = {label: self.ledger(suite, weights) for label, weights in models.items()}
        self._complete(ledgers.values(), what, method="logits")
        return {
            label: {name: ledger.logits(name, entry) for name in suite.datasets} for label, ledger in ledgers.items()
        }

    def hashes(self, names: Iterable[str]) -> dict[str, list[str]]:
        """SHA-256 of every image of the datasets."""
        found: dict[str, list[str]] = {}

        def keep(name: str, hashes: list[str]) -> str:
            found[name] = hashes
            return f"{len(hashes):,} images"

        work = [Work(Job(f"hashing {name}", ("", name), 1.0, "hashes", (name,)), partial(keep, name), 1.0)
                for name in dict.fromkeys(names)]  # fmt: skip
        self.finish(work, Said(self.say, "hashing the images of every set", "sets"))
        return found

    def ledger(self, suite: Suite, weights: Weights | None, *, compared: bool = False) -> Ledger:
        """What is finished of a model on a suite."""
        original = self.facts(None) if compared else None
        evaluation = Evaluation(self.facts(weights), original, None, suite, self.device)
        if evaluation.digest not in self._ledgers:
            shared = Prefix(f"s3://{self.bucket}/evaluations/{evaluation.name}")
            own = Folder(Path(self._scratch.name) / evaluation.name)
            ledger = Ledger(evaluation, shared if self.write else Aside(shared, own), self.say, lambda: None)
            ledger.open()
            self._ledgers[evaluation.digest] = ledger
        return self._ledgers[evaluation.digest]

    def facts(self, weights: Weights | None) -> ModelFacts:
        """A model's facts, its label made of its weights, so that whoever measures it finds what is kept."""
        key = weights.sha256 if weights else ""
        if key not in self._facts:
            path = Path(self._scratch.name) / "weights" / f"{key or 'unmodified'}.safetensors"
            if weights is None:
                use_s3_weights()
                clip = load_clip(self.model)
                save_weights(path, clip)
            else:
                storage.get_file(weights.uri, path, sha256=weights.sha256)
                clip = load_weights(path)
            facts = model_facts(clip, RobustCLIP(clip), "model")
            self.packed.setdefault(facts.weights_sha256, path.read_bytes)
            self._facts[key] = facts.model_copy(update={"label": facts.weights_sha256[:12]})
        return self._facts[key]

    def _complete(self, ledgers: Iterable[Ledger], what: str, **how: Any) -> None:
        """Of models of the same weights, which share a ledger, once."""
        distinct = list({ledger.evaluation.digest: ledger for ledger in ledgers}.values())
        name = what.lstrip()
        self._indent = what.removesuffix(name)
        looking = Said(self.say, "looking at the sets", "sets")
        self.complete(distinct, Said(self.say, name), looking=looking, **how)


def _result(ledger: Ledger) -> tuple[Measurement, dict[str, Rights]]:
    """Under all attacks together; with several, each one's own accuracies beside it."""
    suite = ledger.evaluation.suite
    verdicts = {name: [(entry, ledger.verdicts(name, entry)) for entry in suite.attacks] for name in suite.datasets}
    rights = {name: rights_of(pairs) for name, pairs in verdicts.items()}
    result = measurement(rights)
    if len(suite.attacks) > 1:
        result["attacks"] = {
            entry.label: measurement({name: rights_of([pairs[number]]) for name, pairs in verdicts.items()})
            for number, entry in enumerate(suite.attacks)
        }
    return result, rights


def measure_unmodified(spec: StudyConfig, bucket: str, say: Callable[[str], None]) -> Measurement:
    """The study's starting point on its dev sets; refuses a study whose roles share an image."""
    with StudyExecutor(spec.model, spec.resources, bucket, say) as executor:
        _check_disjoint(executor, spec.data_sets())
        suite = spec.evaluate.select.suite("dev", spec.data.dev)
        found = executor.measure(suite, {"clip": None}, "measuring the unmodified CLIP")
    return found["clip"][0]


def _check_disjoint(executor: StudyExecutor, roles: Mapping[str, Sequence[str]]) -> None:
    found = {
        name: set(hashes) for name, hashes in executor.hashes(itertools.chain.from_iterable(roles.values())).items()
    }
    for (role, members), (other, others) in itertools.combinations(roles.items(), 2):
        for name, other_name in itertools.product(members, others):
            if shared := found[name] & found[other_name]:
                raise UserError(
                    f"data.{role} {name!r} and data.{other} {other_name!r} share {len(shared)} images; "
                    "what the search sees must not be what promotion measures"
                )
