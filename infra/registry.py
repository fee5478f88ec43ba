"""MLflow's model registry as a projection of what promotion decided: versions found by key, aliases repaired.

The truth about the champion lives in S3. These calls bring the registry in line with it; each is safe to repeat.
They raise `ServiceError` when MLflow is away (after three attempts) or refuses.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from infra import mlflow_calls
from infra.errors import ServiceError

__all__ = ["alias_version", "register_version", "set_alias", "version_by_key"]

VERSION_TAG = "agft.version_key"
MODEL_TAG = "agft.logged_model_id"  # the server itself forgets which LoggedModel an S3 source belongs to
ATTEMPTS, PAUSE_SECONDS = 3, 1.0

Answer = TypeVar("Answer")


def _calling(tracking_uri: str, what: str, call: Callable[[Any], Answer]) -> Answer:
    """`call(client)`, repeated while the server is away; what it refuses becomes a `ServiceError`."""
    client = mlflow_calls.connect(tracking_uri)
    for attempt in range(1, ATTEMPTS + 1):
        try:
            return call(client)
        except Exception as error:
            reason = mlflow_calls.outage(error)
            if reason is None or attempt == ATTEMPTS:
                raise ServiceError(f"MLflow at {tracking_uri}: {what}: {reason or error}") from error
            time.sleep(PAUSE_SECONDS * attempt)
    raise AssertionError("unreachable")


def register_version(
    tracking_uri: str,
    *,
    name: str,
    key: str,
    source_uri: str,
    run_id: str,
    metrics: Mapping[str, float],
    params: Mapping[str, str],
    tags: Mapping[str, str],
    description: str,
    artifacts: Mapping[str, Path],
) -> int:
    """Register the model at `source_uri` (`s3://...`) as a version of `name` and return its number, from 1.

    Makes a LoggedModel (metrics, params, small `artifacts` by their path in it), finalizes it, and points a version
    at it. `key` identifies the version: the second call with it returns the first one's number and changes nothing.
    """

    def call(client: Any) -> int:
        if (found := _find_version(client, name, key)) is not None:
            return found
        model_id = _logged_model(client, name, key, run_id, metrics, params, tags, artifacts)
        _ensure_registered_model(client, name)
        version = client.create_model_version(
            name,
            source_uri,
            run_id=run_id,
            tags={**tags, VERSION_TAG: key, MODEL_TAG: model_id},
            description=description,
            model_id=model_id,
            await_creation_for=0,
        )
        return int(version.version)

    return _calling(tracking_uri, f"registering {name!r}", call)


def version_by_key(tracking_uri: str, name: str, key: str) -> int | None:
    """The number of the version that was registered under `key`, or None."""
    return _calling(tracking_uri, f"looking for {name!r}", lambda client: _find_version(client, name, key))


def set_alias(tracking_uri: str, name: str, alias: str, version: int) -> None:
    """Point `alias` at this version, whatever it pointed at before."""
    _calling(
        tracking_uri,
        f"alias {alias!r} of {name!r}",
        lambda client: client.set_registered_model_alias(name, alias, str(version)),
    )


def alias_version(tracking_uri: str, name: str, alias: str) -> int | None:
    """The version that `alias` points at; None if there is no such alias or no such model."""
    from mlflow.exceptions import MlflowException

    def call(client: Any) -> int | None:
        try:
            return int(client.get_model_version_by_alias(name, alias).version)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise

    return _calling(tracking_uri, f"alias {alias!r} of {name!r}", call)


def _find_version(client: Any, name: str, key: str) -> int | None:
    versions = client.search_model_versions(f"name = '{name}' and tags.`{VERSION_TAG}` = '{key}'")
    return min((int(version.version) for version in versions), default=None)


def _ensure_registered_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _logged_model(
    client: Any,
    name: str,
    key: str,
    run_id: str,
    metrics: Mapping[str, float],
    params: Mapping[str, str],
    tags: Mapping[str, str],
    artifacts: Mapping[str, Path],
) -> str:
    """The finished LoggedModel of `key`, completed if an earlier call was interrupted; its id."""
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    found = client.search_logged_models([experiment], filter_string=f"tags.`{VERSION_TAG}` = '{key}'")
    if found and str(found[0].status) == "READY":
        return str(found[0].model_id)
    model = found[0] if found else client.create_logged_model(
        experiment, name=name, source_run_id=run_id, tags={**tags, VERSION_TAG: key}, params=dict(params)
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for path, local in artifacts.items():
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(local, target)
        if artifacts:
            client.log_model_artifacts(model.model_id, folder)
    stamp = int(run.info.end_time or run.info.start_time)
    for metric, value in metrics.items():
        client.log_metric(run_id, metric, value, timestamp=stamp, step=0, model_id=model.model_id)
    client.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)
