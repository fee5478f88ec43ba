"""MLflow's model registry as a projection of what promotion decided: versions found by key, aliases repaired.

The truth about the champion lives in S3. These calls bring the registry in line with it; each is safe to repeat.
They raise `ServiceError` when MLflow is away (after three attempts) or refuses.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from infra.errors import ServiceError
from infra.tracking import calls as mlflow_calls

VERSION_TAG = "agft.version_key"
MODEL_TAG = "agft.logged_model_id"  # the server itself forgets which LoggedModel an S3 source belongs to
ATTEMPTS, PAUSE_SECONDS = 3, 1.0
DESCRIPTION_CHARACTERS = 5000  # limit of the server's column

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class MeasuredOn:
    """A dataset that a model was measured on: its name, content hash and role, and what came out, by metric name."""

    name: str
    sha256: str
    role: str
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Registered:
    """What the registry has of one model name: version numbers by key, version numbers by alias."""

    versions: Mapping[str, int]
    aliases: Mapping[str, int]


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
    model_folder: Path | None = None,
    datasets: Sequence[MeasuredOn] = (),
) -> int:
    """Register the model at `source_uri` (`s3://...`) as a version of `name` and return its number, from 1.

    Makes a LoggedModel (metrics, params, `datasets` with their metrics, small `artifacts` by their path in it),
    finalizes it, and points a version at it. With `model_folder`, a saved MLflow model, the LoggedModel is that model
    and the version's source, so that `models:/NAME@ALIAS` loads and serves; else the source is `source_uri`.
    `key` identifies the version: the second call with it returns the first one's number and changes nothing.
    """
    tags = {key_: value[: mlflow_calls.TAG_CHARACTERS] for key_, value in tags.items()}
    folder_files = {} if model_folder is None else {
        str(path.relative_to(model_folder)): path for path in sorted(model_folder.rglob("*")) if path.is_file()
    }  # fmt: skip

    def call(client: Any) -> int:
        if (found := _find_version(client, name, key)) is not None:
            return found
        model = _logged_model(client, name, key, run_id, metrics, params, tags, {**folder_files, **artifacts}, datasets)
        _ensure_registered_model(client, name)
        version = client.create_model_version(
            name,
            source_uri if model_folder is None else model.artifact_location,
            run_id=run_id,
            tags={**tags, VERSION_TAG: key, MODEL_TAG: model.model_id},
            description=_clipped(description),
            model_id=model.model_id,
            await_creation_for=0,
        )
        return int(version.version)

    return _calling(tracking_uri, f"registering {name!r}", call)


def project_aliases(tracking_uri: str, name: str, wanted: Mapping[str, str | None]) -> dict[str, int | None]:
    """Make the aliases of `name` point at the versions with these keys; what each points at now, None: at nothing.

    An alias whose version is not registered (or whose key is None) is taken away: it must not point at another model.
    """

    def call(client: Any) -> dict[str, int | None]:
        found = _registered(client, name)
        numbers = {alias: found.versions.get(key) if key else None for alias, key in wanted.items()}
        for alias, number in numbers.items():
            if number is not None and found.aliases.get(alias) != number:
                client.set_registered_model_alias(name, alias, str(number))
            elif number is None and alias in found.aliases:
                client.delete_registered_model_alias(name, alias)
        return numbers

    return _calling(tracking_uri, f"aliases of {name!r}", call)


def tag_version(tracking_uri: str, name: str, key: str, tags: Mapping[str, str]) -> bool:
    """Set tags of the version with this key; False if the registry does not have it."""

    def call(client: Any) -> bool:
        number = _registered(client, name).versions.get(key)
        for tag, value in tags.items() if number is not None else ():
            client.set_model_version_tag(name, str(number), tag, value[: mlflow_calls.TAG_CHARACTERS])
        return number is not None

    return _calling(tracking_uri, f"tags of {name!r}", call)


def registered(tracking_uri: str, name: str) -> Registered:
    """The versions and aliases of a name; empty if the registry does not know it."""
    return _calling(tracking_uri, f"looking for {name!r}", lambda client: _registered(client, name))


def _registered(client: Any, name: str) -> Registered:
    from mlflow.exceptions import MlflowException

    try:
        model = client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return Registered({}, {})
        raise
    versions: dict[str, int] = {}
    page: str | None = None
    while True:
        found = client.search_model_versions(f"name = '{name}'", max_results=200, page_token=page)
        for version in found:
            number = int(version.version)
            if key := version.tags.get(VERSION_TAG):
                versions[key] = min(number, versions.get(key, number))
        page = found.token
        if not page:
            break
    return Registered(versions, {alias: int(number) for alias, number in model.aliases.items()})


def _clipped(description: str) -> str:
    """Whole lines of it, as many as the server keeps."""
    if len(description) <= DESCRIPTION_CHARACTERS:
        return description
    more = "\n\n(The rest is in README.md among the artifacts.)"
    return description[: DESCRIPTION_CHARACTERS - len(more)].rpartition("\n")[0] + more


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
    files: Mapping[str, Path],
    datasets: Sequence[MeasuredOn],
) -> Any:
    """The finished LoggedModel of `key`, completed if an earlier call was interrupted."""
    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    found = client.search_logged_models([experiment], filter_string=f"tags.`{VERSION_TAG}` = '{key}'")
    if found and str(found[0].status) == "READY":
        return found[0]
    model = found[0] if found else client.create_logged_model(
        experiment, name=name, source_run_id=run_id, tags={**tags, VERSION_TAG: key}, params=dict(params)
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for path, local in files.items():
            target = Path(folder) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(local, target)
        _say_which(Path(folder) / "MLmodel", model, run_id)
        if files:
            client.log_model_artifacts(model.model_id, folder)
    stamp = int(run.info.end_time or run.info.start_time)
    for metric, value in metrics.items():
        client.log_metric(run_id, metric, value, timestamp=stamp, step=0, model_id=model.model_id)
    if datasets:
        mlflow_calls.send_inputs(client, run_id, [(each.name, each.sha256, each.role) for each in datasets])
    for each in datasets:
        digest = each.sha256[: mlflow_calls.DIGEST_CHARACTERS]
        for metric, value in each.metrics.items():
            client.log_metric(
                run_id, metric, value, timestamp=stamp, step=0, model_id=model.model_id,
                dataset_name=each.name, dataset_digest=digest,
            )  # fmt: skip
    client.finalize_logged_model(model.model_id, "READY")
    return model


def _say_which(mlmodel: Path, model: Any, run_id: str) -> None:
    """A saved model does not know which LoggedModel it will be; MLflow's loaders want it in the file."""
    if not mlmodel.is_file():
        return
    from mlflow.models import Model

    saved = Model.load(mlmodel)
    saved.model_id, saved.run_id, saved.artifact_path = model.model_id, run_id, model.artifact_location
    saved.save(mlmodel)
