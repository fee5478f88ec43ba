"""MLflow's registry brought in line with HEAD: versions registered from their manifests, both aliases set.

HEAD is the truth. Whoever promotes or rolls back calls this, also when the champion stays, so whatever an earlier one
could not tell MLflow is made up for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from infra.errors import ServiceError
from infra.failpoint import reach
from infra.mlflow_calls import connect, experiment_id, find_run, outage
from infra.registry import version_by_key
from study.catalog import version_key
from study.champion import Head, model_prefix, read_head, read_manifest
from study.projection import EXPERIMENT
from study.registered import project_head, register_promoted

__all__ = ["follow_head"]

RunOf = Callable[[Mapping[str, Any]], str | None]


def follow_head(bucket: str, name: str, tracking_uri: str, run_of: RunOf | None = None) -> Head:
    """Make the registry say what HEAD says; HEAD as it was then. `ServiceError` when MLflow does not answer.

    `run_of`: from a manifest to the MLflow run of its study, for a version that is not registered yet.
    """
    while True:
        head, _ = read_head(bucket, name)
        for version in (head.previous, head.champion):
            if version is not None:
                _registered(bucket, name, version, tracking_uri, run_of)
                reach("promotion.registered")
        project_head(bucket, name, tracking_uri)
        if read_head(bucket, name)[0] == head:
            reach("promotion.aliased")
            return head


def _registered(bucket: str, name: str, version: int, tracking_uri: str, run_of: RunOf | None) -> int:
    """MLflow's number of a version, which is registered if it is not."""
    manifest = read_manifest(bucket, name, version)
    key = version_key(model_prefix(bucket, name, version), manifest)
    if (found := version_by_key(tracking_uri, name, key)) is not None:
        return found
    run_id = (run_of(manifest) if run_of else None) or _run_of(tracking_uri, manifest)
    return register_promoted(manifest, bucket=bucket, tracking_uri=tracking_uri, run_id=run_id)


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
