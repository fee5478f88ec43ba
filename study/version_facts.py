"""What a promotion measures of a version beside its accuracies: its calibration, and which images it was about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import ray

from study.calibration import measure_calibration
from study.catalog import own_result
from trainers.config import ModelConfig

__all__ = ["version_facts"]


def version_facts(manifest: Mapping[str, Any], weights: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest's keys `calibration` (of the version and of the unmodified CLIP) and `inputs` (set -> content hash).

    `manifest`: with config, confirm, final and measured_with; `weights`: {uri, sha256} of what ships. Needs a Ray
    cluster with a CPU, and takes a GPU where there is one. The final sets are looked at by the images that the
    promotion's own look at them was about, without an attack: it is no further choice.
    """
    config, how = manifest["config"], manifest.get("measured_with") or {}
    sets = {role: list((own_result(manifest, role) or {}).get("datasets") or {}) for role in ("confirm", "final")}
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    hashes = ray.remote(num_cpus=1)(_content_hashes).remote([*sets["confirm"], *sets["final"]])
    calibration = measure_calibration(
        {"model": weights, "unmodified": None}, ModelConfig.model_validate(config["model"]), dev=config["data"]["dev"],
        judged=sets["final"], samples=how.get("samples"), seed=how.get("seed", 0), num_gpus=gpus,
    )  # fmt: skip
    try:
        return {"calibration": calibration, "inputs": ray.get(hashes)}
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None


def _content_hashes(names: Sequence[str]) -> dict[str, str]:
    """In a Ray worker."""
    from study.sources import use_s3_data
    from trainers.data import load_dataset

    use_s3_data()
    return {name: load_dataset(name, path="data").content_hash for name in names}
