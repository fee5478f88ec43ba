"""What Ray workers do for an evaluation: look at datasets, measure units, check sanity. Models stay in memory."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import ray
import torch
from torch import Tensor

from study.artifacts.sources import use_s3_data
from study.evaluation.units import UNIT_IMAGES, Looked, Unit, size
from trainers.data import ImageSet, dataset_entry, load_dataset
from trainers.data.prefetch import prefetched
from trainers.device import out_of_memory, task_device
from trainers.errors import UserError
from trainers.evaluation.measure import measure
from trainers.evaluation.readings import Readings, read
from trainers.evaluation.scorer import Scorer, device_name, exact, fitting, fitting_batch
from trainers.evaluation.summary import dataset_facts
from trainers.evaluation.verdicts import Verdicts, pack_verdicts, stratified_sample
from trainers.model.build import tokenizer_for
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.model.weights import load_weights
from trainers.schema.suite import AttackAt, Suite

MODELS_KEPT = 3  # the model, the one that overlap compares with, the one that a transfer attack is made on
SANITY_IMAGES = 200

Kept = TypeVar("Kept")


@dataclass(frozen=True)
class Models:
    """Which models take part, by the SHA-256 of their weights."""

    model: str
    original: str | None
    surrogate: str | None


class EvaluationWorker:
    """One process of the cluster. `weights`: SHA-256 -> where Ray keeps the model's weights file."""

    def __init__(self, weights: Mapping[str, Any], threads: int, gpus: float) -> None:
        torch.set_num_threads(threads)
        use_s3_data()
        self.weights = weights
        self.gpus = gpus
        self._clips: OrderedDict[str, Any] = OrderedDict()
        self._scorers: OrderedDict[tuple[str, str], Scorer] = OrderedDict()

    @property
    def device(self) -> torch.device:
        """Asked for at work, not at the start: what is wrong with it is then an answer, and no lost worker."""
        return task_device(self.gpus)

    def hello(self) -> str:
        """That it is up."""
        return socket.gethostname()

    def look(self, dataset: str, suite: Mapping[str, Any]) -> str:
        """What the driver must know about a dataset before it can tell its units apart, as JSON."""
        image_set, entry = self._images(dataset), dataset_entry(dataset, "datasets")
        found, indices = {}, {}
        for at in Suite.model_validate(suite).attacks:
            sample = stratified_sample(image_set.labels, at.samples, seed=int(suite["seed"]))
            found[size(at)] = dataset_facts(image_set, sample, entry)
            indices[size(at)] = tuple(_hash(part) for part in sample.split(UNIT_IMAGES))
        return Looked(facts=found, indices=indices).model_dump_json()

    def hashes(self, dataset: str) -> list[str]:
        """SHA-256 of every image."""
        return self._images(dataset).image_hashes()

    def measure(
        self, unit: Unit, models: Models, suite: Mapping[str, Any], evaluation: str, batch_size: int | None
    ) -> bytes:
        """A unit's verdicts, with how they were made, as a file's bytes."""
        started = time.time(), time.monotonic()
        whole = Suite.model_validate(suite)
        image_set, index = self._part(unit, whole.seed)
        scorer = self._scorer(models.model, unit.dataset)
        original, surrogate = (
            None if sha256 is None else self._scorer(sha256, unit.dataset)
            for sha256 in (models.original, models.surrogate)
        )
        scorer.rows = 0
        verdicts = self._fitting(
            batch_size or fitting_batch(scorer, tuple(image_set.images.shape[1:])),
            scorer.size,
            lambda size: measure(
                scorer, image_set, index, unit.entry, protocol=whole.protocol, seed=whole.seed,
                batch_size=size, original=original, surrogate=surrogate,
            ),
        )  # fmt: skip
        return pack_verdicts(verdicts, self._how(unit, evaluation, image_set, scorer, started))

    def logits(
        self, unit: Unit, models: Models, suite: Mapping[str, Any], evaluation: str, batch_size: int | None
    ) -> bytes:
        """As `measure` at a radius of zero, where an image's attacked form is the image itself, with its logits."""
        started = time.time(), time.monotonic()
        image_set, index = self._part(unit, int(suite["seed"]))
        scorer = self._scorer(models.model, unit.dataset)
        scorer.rows = 0
        labels = image_set.labels[index].to(torch.int64)
        with torch.no_grad(), exact(scorer.model):
            parts = prefetched(image_set.images, index.split(scorer.size), self.device)
            logits = torch.cat([scorer(scorer.pixels(part)) for part in parts])
            clean = read(logits, labels.to(self.device), scorer.model.logit_scale)
        verdicts = Verdicts(image_set.name, unit.entry.eps, index, labels, clean, Readings.stack([clean]))
        facts = self._how(unit, evaluation, image_set, scorer, started)
        return pack_verdicts(verdicts, facts, logits=logits.cpu())

    def check(
        self,
        dataset: str,
        models: Models,
        entry: AttackAt,
        seed: int,
        samples: int = SANITY_IMAGES,
        only: Sequence[str] | None = None,
    ) -> str:
        """Findings of the sanity checks at the entry's largest radius, on a sample of the dataset, as JSON."""
        from trainers.evaluation.sanity import sanity_checks

        image_set = self._images(dataset)
        index = stratified_sample(image_set.labels, samples, seed=seed)
        scorer = self._scorer(models.model, dataset)
        original = None if models.original is None else self._scorer(models.original, dataset)
        images = scorer.pixels(image_set.images[index])
        with exact(*(each.model for each in (scorer, original) if each is not None)):
            found = self._fitting(
                min(samples, fitting_batch(scorer, tuple(images.shape[1:]))),
                1,
                lambda batch: sanity_checks(
                    logits=scorer, original=original, images=images,
                    labels=image_set.labels[index].to(torch.int64).to(self.device), index=index.to(self.device),
                    num_classes=scorer.num_classes, eps=max(entry.eps), norm=entry.norm, seed=seed, batch=batch,
                    only=only,
                ),
            )  # fmt: skip
        return json.dumps([finding.model_dump(mode="json") for finding in found])

    def _fitting(self, batch: int, least: int, compute: Callable[[int], Kept]) -> Kept:
        """See `fitting`; what does not fit at all is the user's to know."""
        try:
            return fitting(batch, least, compute)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            raise UserError(f"{device_name(self.device)}: {least} images do not fit into its memory") from error

    def _part(self, unit: Unit, seed: int) -> tuple[ImageSet, Tensor]:
        """The unit's dataset and the indices of its images."""
        image_set = self._images(unit.dataset)
        sample = stratified_sample(image_set.labels, unit.entry.samples, seed=seed)
        return image_set, sample[unit.first : unit.first + UNIT_IMAGES]

    def _how(
        self, unit: Unit, evaluation: str, image_set: ImageSet, scorer: Scorer, started: tuple[float, float]
    ) -> dict[str, Any]:
        """What is remembered of how a unit was made; `started`: time of day, and of a clock that never jumps."""
        return {
            "evaluation": evaluation,
            "unit": unit.name,
            "content_sha256": image_set.content_hash,
            "device": device_name(self.device),
            "micro_batch": scorer.size,
            "images_forwarded": scorer.rows,
            "worker": f"{socket.gethostname()}:{os.getpid()}",
            "started_ms": int(1000 * started[0]),
            "seconds": round(time.monotonic() - started[1], 3),
        }

    def _images(self, dataset: str) -> ImageSet:
        return load_dataset(dataset, path="datasets")

    def _scorer(self, sha256: str, dataset: str) -> Scorer:
        """A model over a dataset's classes; kept while the model is."""

        def build() -> Scorer:
            clip = self._clip(sha256)
            classes = class_embeddings(clip, self._images(dataset).prompts(), tokenizer_for(clip))
            return Scorer(RobustCLIP(clip), classes)

        self._clip(sha256)
        return _kept(self._scorers, (sha256, dataset), build)

    def _clip(self, sha256: str) -> Any:
        def load() -> Any:
            while len(self._clips) >= MODELS_KEPT:
                gone, _ = self._clips.popitem(last=False)
                for key in [key for key in self._scorers if key[0] == gone]:
                    del self._scorers[key]
            with tempfile.TemporaryDirectory(prefix="agft-evaluate-") as folder:
                path = Path(folder) / "weights.safetensors"
                path.write_bytes(ray.get(self.weights[sha256]))
                return load_weights(path).to(self.device)

        return _kept(self._clips, sha256, load)


def _kept(kept: OrderedDict[Any, Kept], key: Any, make: Callable[[], Kept]) -> Kept:
    """The value of `key`, made if it is not there; now the last one to be forgotten."""
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    return kept[key]


def _hash(index: Tensor) -> str:
    return hashlib.sha256(index.numpy().astype("<i8").tobytes()).hexdigest()
