"""MLflow's registry brought in line with HEAD: versions registered from their manifests, both aliases set.

HEAD is the truth. Whoever promotes or rolls back calls this, also when the champion stays, so whatever an earlier one
could not tell MLflow is made up for.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from infra.errors import ServiceError
from infra.failpoint import reach
from infra.mlflow_calls import connect, experiment_id, find_run, outage
from infra.registry import register_version, set_alias, version_by_key
from study.champion import Head, model_prefix, read_head, read_manifest
from study.projection import EXPERIMENT, flat
from study.proof_names import UNMODIFIED

__all__ = ["follow_head"]

RunOf = Callable[[Mapping[str, Any]], str | None]


def follow_head(bucket: str, name: str, tracking_uri: str, run_of: RunOf | None = None) -> Head:
    """Make the registry say what HEAD says; HEAD as it was then. `ServiceError` when MLflow does not answer.

    `run_of`: from a manifest to the MLflow run of its study, for a version that is not registered yet.
    """
    while True:
        head, _ = read_head(bucket, name)
        for alias, version in (("previous", head.previous), ("champion", head.champion)):
            if version is not None:
                number = _registered(bucket, name, version, tracking_uri, run_of)
                reach("promotion.registered")
                set_alias(tracking_uri, name, alias, number)
        if read_head(bucket, name)[0] == head:
            reach("promotion.aliased")
            return head


def _registered(bucket: str, name: str, version: int, tracking_uri: str, run_of: RunOf | None) -> int:
    """MLflow's number of a version, which is registered if it is not."""
    manifest = read_manifest(bucket, name, version)
    prefix = model_prefix(bucket, name, version)
    key = f"{prefix}#{manifest['weights']['sha256']}"
    if (found := version_by_key(tracking_uri, name, key)) is not None:
        return found
    run_id = (run_of(manifest) if run_of else None) or _run_of(tracking_uri, manifest)
    if run_id is None:
        study = manifest["study"]
        raise ServiceError(
            f"MLflow at {tracking_uri} has no run of study {study!r}, which version {version} of {name} is from; "
            f"`agft promote {study} --repair` makes it"
        )
    tags = {
        "agft.study": manifest["study"],
        "agft.trial": str(manifest["trial"]),
        "agft.weights.uri": manifest["weights"]["uri"],
        "agft.weights.sha256": manifest["weights"]["sha256"],
        "agft.version": str(version),
        "agft.promotion": str(manifest.get("promotion")),
        "agft.forced": str(manifest.get("forced") or ""),
    }
    with tempfile.TemporaryDirectory(prefix="agft-register-") as folder:
        path = Path(folder) / "manifest.json"
        path.write_text(json.dumps(manifest, indent=2))
        return register_version(
            tracking_uri, name=name, key=key, source_uri=prefix, run_id=run_id, metrics=_metrics(manifest),
            params=flat(manifest["config"]), tags=tags, description=_description(manifest),
            artifacts={"manifest.json": path},
        )  # fmt: skip


def _run_of(tracking_uri: str, manifest: Mapping[str, Any]) -> str | None:
    """The study's run, if MLflow has it."""
    if "study_key" not in manifest:
        return None
    try:
        client = connect(tracking_uri)
        run = find_run(client, experiment_id(client, EXPERIMENT), manifest["study_key"])
    except ServiceError:
        raise
    except Exception as error:
        raise ServiceError(f"MLflow at {tracking_uri}: {outage(error) or error}") from error
    return None if run is None else str(run.info.run_id)


def _metrics(manifest: Mapping[str, Any]) -> dict[str, float]:
    own = f"trial {manifest['trial']}"
    return {
        f"{role}_{owner}{name}": float(manifest[role][label][name])
        for role in ("confirm", "final")
        for label, owner in ((own, ""), (UNMODIFIED, "clip_"))
        for name in ("clean_accuracy", "robust_accuracy")
    }


def _description(manifest: Mapping[str, Any]) -> str:
    own, clip = (manifest["final"][label] for label in (f"trial {manifest['trial']}", UNMODIFIED))
    forced = f" Promoted against a gate: {manifest['forced']}." if manifest.get("forced") else ""
    return (
        f"Trial {manifest['trial']} of study {manifest['study']}. On the final sets: "
        f"robust accuracy {own['robust_accuracy']:.1%} (unmodified CLIP {clip['robust_accuracy']:.1%}), "
        f"clean accuracy {own['clean_accuracy']:.1%} (unmodified CLIP {clip['clean_accuracy']:.1%}).{forced}"
    )
