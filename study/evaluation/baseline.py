"""Measure models on named datasets: one Ray task a dataset, so that a cluster's devices share the work."""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from infra import storage
from study.artifacts.sources import use_s3_data, use_s3_weights
from study.errors import UserError
from study.results.ranking import Measurement, summary
from study.results.rights import rights_of
from study.spec.config import ResourcesConfig, StudyConfig
from study.spec.evaluation import FinalEvaluation, entries
from trainers.schema.training import EvalConfig, ModelConfig


def _load(model: ModelConfig, weights: Mapping[str, Any] | None) -> Any:
    from trainers.model.pretrained import load_clip
    from trainers.model.weights import load_weights

    if weights is None:
        use_s3_weights()
        return load_clip(model)
    with tempfile.TemporaryDirectory(prefix="agft-measure-") as folder:
        path = Path(folder) / "weights.safetensors"
        storage.get_file(weights["uri"], path, sha256=weights["sha256"])
        return load_weights(path)


def _measure_set(
    model: dict[str, Any], weights: Mapping[str, Any] | None, name: str, config: dict[str, Any], threads: int
) -> dict[str, Any]:
    """One dataset, in a Ray worker: scores by radius, as JSON values."""
    import torch

    from trainers.data import load_dataset
    from trainers.evaluation.measure import measure as verdicts_on
    from trainers.evaluation.scorer import Scorer
    from trainers.evaluation.verdicts import stratified_sample
    from trainers.model.build import tokenizer_for
    from trainers.model.robust import RobustCLIP, class_embeddings

    use_s3_data()
    torch.set_num_threads(threads)
    device = "cuda" if torch.cuda.is_available() and os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu"
    clip = _load(ModelConfig.model_validate(model), weights).to(device)
    how, images = FinalEvaluation.model_validate(config), load_dataset(name, path="data")
    scorer = Scorer(RobustCLIP(clip), class_embeddings(clip, images.prompts(), tokenizer_for(clip)))
    found = []
    for entry in entries(how):
        sample = stratified_sample(images.labels, entry.samples, seed=how.seed)
        found.append((entry, verdicts_on(scorer, images, sample, entry, protocol=how.protocol, seed=how.seed)))
    return rights_of(found).scores()


def _hashes(names: Sequence[str]) -> dict[str, list[str]]:
    from trainers.data import load_dataset

    use_s3_data()
    return {name: load_dataset(name).image_hashes() for name in names}


def measure(
    models: Mapping[str, Mapping[str, Any] | None],
    model: ModelConfig,
    sets: Sequence[str],
    config: EvalConfig,
    resources: ResourcesConfig,
) -> dict[str, Measurement]:
    """Every model (label -> `{uri, sha256}` of its weights, or None for the unmodified `model`) on every set.

    Means over sets and radii are unweighted; under several attacks an image must survive all of them. Raises what the
    first failing task raised.
    """
    threads = max(1, int(resources.cpus_per_worker))
    task = ray.remote(num_cpus=resources.cpus_per_worker, num_gpus=resources.gpus_per_worker)(_measure_set)
    plain, settings = model.model_dump(mode="json"), config.model_dump(mode="json")
    pending = {
        (label, name): task.remote(plain, dict(weights) if weights else None, name, settings, threads)
        for label, weights in models.items()
        for name in sets
    }
    try:
        found = dict(zip(pending, ray.get(list(pending.values())), strict=True))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return {label: summary({name: found[label, name] for name in sets}) for label in models}


def measure_unmodified(spec: StudyConfig) -> Measurement:
    """The study's starting point on its dev sets; refuses a study whose roles share an image."""
    _check_disjoint(spec)
    sets, config = spec.data.dev, spec.evaluate.select
    return measure({"clip": None}, spec.model, sets, config, spec.resources)["clip"]


def _check_disjoint(spec: StudyConfig) -> None:
    roles = spec.data_sets()
    names = [name for members in roles.values() for name in members]
    try:
        found = ray.get(ray.remote(num_cpus=spec.resources.cpus_per_worker)(_hashes).remote(names))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    for (role, members), (other, others) in itertools.combinations(roles.items(), 2):
        for name, other_name in itertools.product(members, others):
            shared = set(found[name]) & set(found[other_name])
            if shared:
                raise UserError(
                    f"data.{role} {name!r} and data.{other} {other_name!r} share {len(shared)} images; "
                    "what the search sees must not be what promotion measures"
                )
