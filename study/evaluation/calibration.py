"""How well a model's probabilities say how often it is right: at the scale that it ships with, and at one temperature.

The temperature is fitted on the dev sets, which the search has seen, and judged on the final sets, which nobody has:
Guo et al., ICML 2017, arXiv:1706.04599, section 4.2. It is one number for all sets, for the model's user to divide the
logits by; the weights keep CLIP's own scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray
import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from infra import storage
from study.evaluation.executor import StudyExecutor
from study.evaluation.ledger import Logits
from study.models.manifest import Calibrations, Draft
from study.spec.config import ResourcesConfig
from trainers.evaluation.readings import BINS, bins_of, calibration_error
from trainers.schema.attacks import PGD
from trainers.schema.records import Weights
from trainers.schema.suite import AttackAt, Suite
from trainers.schema.training import ModelConfig

LOWEST, HIGHEST = 0.01, 100.0  # temperatures that are tried
TOLERANCE = 1e-9  # of log T

Labelled = Logits  # logits [n, K] at the shipped scale, labels int64 [n]


def fit_temperature(sets: Sequence[Labelled]) -> float:
    """The temperature T in [0.01, 100] with the least mean cross-entropy of logits / T, every set weighing the same.

    The loss is convex in 1 / T, so a bounded search of log T finds it, to 1e-7 of T or better. A set that is classified
    without an error has no best temperature of its own (the colder the better); with others it only pulls.
    """
    if not sets or any(len(labels) == 0 for _, labels in sets):
        raise ValueError("a temperature needs at least one set, and images in every set")
    plain = [(logits.double(), labels.to(torch.int64)) for logits, labels in sets]

    def loss(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        parts = [torch.nn.functional.cross_entropy(scale * logits, labels) for logits, labels in plain]
        return float(torch.stack(parts).mean())

    bounds = math.log(LOWEST), math.log(HIGHEST)
    return math.exp(minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": TOLERANCE}).x)


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
    sums = torch.zeros(BINS, 3, dtype=torch.float64)
    sums.index_add_(0, bins_of(confidence), torch.stack([torch.ones_like(confidence), confidence, right.double()], 1))
    return [[n, c / n, r / n] if n else [0.0, 0.0, 0.0] for n, c, r in sums.tolist()]


# What a promotion measures of a version beside its accuracies: its calibration, and which images it was about.

CLEAN = PGD()  # of no effect at a radius of zero


def version_facts(draft: Draft, weights: Weights, *, say: Callable[[str], None]) -> Draft:
    """The draft with `calibration` (of the version and of the unmodified CLIP) and `inputs` (set -> content hash).

    `weights`: what ships. Needs a Ray cluster with a CPU, and takes a GPU where there is one. The final sets are looked
    at by the images that the promotion's own look at them was about, without an attack: it is no further choice.
    """
    config, how = draft.config, draft.measured_with
    dev, confirm = tuple(config["evaluate"]["datasets"]), tuple(draft.own("confirm")["datasets"])
    sizes = [entry.samples for entry in how.attacks]  # the smaller samples are parts of the largest
    samples = None if None in sizes else max(filter(None, sizes))
    attacks = (AttackAt(attack=CLEAN, eps=(0.0,), samples=samples),)
    every = tuple(dict.fromkeys((*dev, *confirm, *how.datasets)))
    suite = Suite(name="calibration", datasets=every, attacks=attacks, seed=how.seed)
    resources = ResourcesConfig(cpus_per_worker=1, gpus_per_worker=1 if ray.cluster_resources().get("GPU") else 0)
    bucket, _ = storage.split_uri(weights.uri)
    with StudyExecutor(ModelConfig.model_validate(config["model"]), resources, bucket, say) as executor:
        logits = executor.logits(suite, {"model": weights, "unmodified": None}, "measuring the calibration")
        looked = executor.ledger(suite, weights).looked
    found = {
        label: calibration({name: sets[name] for name in dev}, {name: sets[name] for name in how.datasets})
        for label, sets in logits.items()
    }
    inputs = {name: next(iter(looked[name].facts.values())).content_sha256 for name in (*confirm, *how.datasets)}
    return draft.model_copy(update={"calibration": Calibrations.model_validate(found), "inputs": inputs})
