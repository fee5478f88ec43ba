"""How well a model's probabilities say how often it is right: at the scale that it ships with, and at one temperature.

The temperature is fitted on the dev sets, which the search has seen, and judged on the final sets, which nobody has:
Guo et al., ICML 2017, arXiv:1706.04599, section 4.2. It is one number for all sets, for the model's user to divide the
logits by; the weights keep CLIP's own scale.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from torch import Tensor

from study.models.manifest import Calibrations, Draft
from trainers.evaluation.readings import BINS, calibration_error
from trainers.schema.records import Weights
from trainers.schema.training import ModelConfig

LOWEST, HIGHEST = 0.01, 100.0  # temperatures that are tried
HALVINGS = 80  # of the interval, each by the golden ratio

Labelled = tuple[Tensor, Tensor]  # logits [n, K] at the shipped scale, labels int64 [n]


def fit_temperature(sets: Sequence[Labelled]) -> float:
    """The temperature T in [0.01, 100] with the least mean cross-entropy of logits / T, every set weighing the same.

    The loss is convex in 1 / T, so a search by intervals finds it. A set that is classified without an error has no
    best temperature of its own (the colder the better); with others it only pulls.
    """
    if not sets or any(len(labels) == 0 for _, labels in sets):
        raise ValueError("a temperature needs at least one set, and images in every set")
    plain = [(logits.double(), labels.to(torch.int64)) for logits, labels in sets]

    def loss(log_temperature: float) -> float:
        scale = float(torch.tensor(-log_temperature, dtype=torch.float64).exp())
        parts = [torch.nn.functional.cross_entropy(scale * logits, labels) for logits, labels in plain]
        return float(torch.stack(parts).mean())

    low, high = (float(torch.tensor(end, dtype=torch.float64).log()) for end in (LOWEST, HIGHEST))
    golden = (5**0.5 - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    values = loss(left), loss(right)
    for _ in range(HALVINGS):
        if values[0] <= values[1]:
            high, right = right, left
            left = high - golden * (high - low)
            values = loss(left), values[0]
        else:
            low, left = left, right
            right = low + golden * (high - low)
            values = values[1], loss(right)
    return float(torch.tensor((low + high) / 2, dtype=torch.float64).exp())


def calibration(dev: Mapping[str, Labelled], judged: Mapping[str, Labelled]) -> dict[str, Any]:
    """Calibration on the sets `judged`, as shipped and at the temperature fitted on the sets `dev`; JSON values.

    Both map a set's name to (logits fp32 [n, K] at the shipped scale, labels int64 [n]), n > 0. Keys: `temperature`,
    `fitted_on`, the means `calibration_error` and `calibration_error_at_temperature` over the sets, and for every one
    in `datasets` its images, accuracy, mean confidences, both errors and 15 `bins` [images, mean confidence, accuracy].
    """
    temperature = fit_temperature(list(dev.values()))
    datasets = {name: _one(*labelled, temperature) for name, labelled in judged.items()}
    errors = ("calibration_error", "calibration_error_at_temperature")
    means = {key: sum(each[key] for each in datasets.values()) / len(datasets) for key in errors}
    return {"temperature": temperature, "fitted_on": list(dev), **means, "datasets": datasets}


def _one(logits: Tensor, labels: Tensor, temperature: float) -> dict[str, Any]:
    logits = logits.double()
    right = logits.argmax(1) == labels
    shipped, fitted = (scaled.softmax(1).amax(1) for scaled in (logits, logits / temperature))
    return {
        "images": len(labels),
        "accuracy": float(right.double().mean()),
        "confidence": float(shipped.mean()),
        "confidence_at_temperature": float(fitted.mean()),
        "calibration_error": calibration_error(shipped, right),
        "calibration_error_at_temperature": calibration_error(fitted, right),
        "bins": _bins(shipped, right),
        "bins_at_temperature": _bins(fitted, right),
    }


def _bins(confidence: Tensor, right: Tensor) -> list[list[float]]:
    """15 equal bins of (0, 1]: [images, mean confidence, accuracy], zeros where there is no image."""
    place = (confidence * BINS).ceil().long().clamp(1, BINS) - 1
    sums = torch.zeros(BINS, 3, dtype=torch.float64)
    sums.index_add_(0, place, torch.stack([torch.ones_like(confidence), confidence, right.double()], 1))
    return [[n, c / n, r / n] if n else [0.0, 0.0, 0.0] for n, c, r in sums.tolist()]


def measure_calibration(
    models: Mapping[str, Mapping[str, Any] | None],
    model: ModelConfig,
    *,
    dev: Sequence[str],
    judged: Sequence[str],
    samples: int | None,
    seed: int = 0,
    num_cpus: float = 1,
    num_gpus: float = 0,
) -> dict[str, dict[str, Any]]:
    """`calibration` of every model (label -> {uri, sha256} of its weights, or None for the unmodified `model`).

    One Ray task a model, on clean images of the sets called `dev` and `judged`: `samples` of each (None: all), the ones
    that an evaluation with these `samples` and this `seed` looks at. Raises what the first failing task raised.
    """
    import ray

    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus)(_of_model)
    settings = model.model_dump(mode="json"), list(dev), list(judged), samples, seed
    pending = {label: task.remote(dict(weights) if weights else None, *settings) for label, weights in models.items()}
    try:
        return dict(zip(pending, ray.get(list(pending.values())), strict=True))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _of_model(
    weights: Mapping[str, Any] | None,
    model: dict[str, Any],
    dev: list[str],
    judged: list[str],
    samples: int | None,
    seed: int,
) -> dict[str, Any]:
    """In a Ray worker."""
    from study.artifacts.sources import use_s3_data, use_s3_weights
    from trainers.model.pretrained import load_clip

    use_s3_data()
    use_s3_weights()
    clip = load_clip(ModelConfig.model_validate(model)) if weights is None else _promised(weights)
    found = {name: _logits(clip, name, samples, seed) for name in dict.fromkeys([*dev, *judged])}
    return calibration({name: found[name] for name in dev}, {name: found[name] for name in judged})


def _promised(weights: Mapping[str, Any]) -> torch.nn.Module:
    from infra import storage
    from trainers.model.weights import load_weights

    with tempfile.TemporaryDirectory(prefix="agft-calibration-") as folder:
        path = Path(folder) / "weights.safetensors"
        storage.get_file(weights["uri"], path, sha256=weights["sha256"])
        return load_weights(path)


def _logits(clip: torch.nn.Module, name: str, samples: int | None, seed: int) -> Labelled:
    """Of the evaluation's sample of a set, on the CPU."""
    from trainers.data import load_dataset
    from trainers.data.prefetch import prefetched
    from trainers.evaluation.scorer import Scorer, exact
    from trainers.evaluation.verdicts import stratified_sample
    from trainers.model.build import tokenizer_for
    from trainers.model.robust import RobustCLIP, class_embeddings

    device = torch.device("cuda" if torch.cuda.is_available() and os.environ.get("CUDA_VISIBLE_DEVICES") else "cpu")
    images = load_dataset(name, path="data")
    scorer = Scorer(RobustCLIP(clip.to(device)), class_embeddings(clip, images.prompts(), tokenizer_for(clip)))
    index = stratified_sample(images.labels, samples, seed=seed)
    with torch.no_grad(), exact(scorer.model):
        parts = prefetched(images.images, index.split(scorer.size), device)
        logits = torch.cat([scorer(scorer.pixels(part)).cpu() for part in parts])
    return logits, images.labels[index].to(torch.int64)


# What a promotion measures of a version beside its accuracies: its calibration, and which images it was about.


def version_facts(draft: Draft, weights: Weights) -> Draft:
    """The draft with `calibration` (of the version and of the unmodified CLIP) and `inputs` (set -> content hash).

    `weights`: what ships. Needs a Ray cluster with a CPU, and takes a GPU where there is one. The final sets are looked
    at by the images that the promotion's own look at them was about, without an attack: it is no further choice.
    """
    config, how = draft.config, draft.measured_with
    sets = {role: list(draft.own(role)["datasets"]) for role in ("confirm", "final")}
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    hashes = ray.remote(num_cpus=1)(_content_hashes).remote([*sets["confirm"], *sets["final"]])
    calibration = measure_calibration(
        {"model": weights.model_dump(), "unmodified": None}, ModelConfig.model_validate(config["model"]),
        dev=config["data"]["dev"], judged=sets["final"], samples=how.samples, seed=how.seed, num_gpus=gpus,
    )  # fmt: skip
    try:
        measured = {"calibration": Calibrations.model_validate(calibration), "inputs": ray.get(hashes)}
        return draft.model_copy(update=measured)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _content_hashes(names: Sequence[str]) -> dict[str, str]:
    """In a Ray worker."""
    from study.artifacts.sources import use_s3_data
    from trainers.data import load_dataset

    use_s3_data()
    return {name: load_dataset(name, path="data").content_hash for name in names}
