"""What we ask of an MLflow server, each call safe to repeat: used by the tracker's thread and by promotion.

Every function may raise whatever `mlflow` raises; `outage` and `refusal` sort that into "try again" and "never".
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.errors import ServiceError, UserError
from infra.failpoint import reach

log = logging.getLogger("agft.tracking")

LEGAL_NAME = re.compile(r"[\w.\- :/]{1,250}", re.ASCII)
KEY_TAG = "agft.trial_key"
POINTS_PER_CALL, PARAMS_PER_CALL = 1000, 100  # limits of log_batch
PARAM_CHARACTERS, TAG_CHARACTERS, DIGEST_CHARACTERS = 6000, 5000, 36  # limits of the server
PASSING_STATUS = (401, 403, 408, 425, 429)  # client errors that somebody may put right while we wait
TOO_LARGE = 413  # of a proxy before the server, which will say the same tomorrow
NOT_MLFLOWS = re.compile(r"API request to endpoint .* failed with error code (\d+) ")  # its client, of a body not JSON
REQUEST_TIMEOUT_SECONDS = 10


@dataclass(frozen=True)
class Point:
    """One value of a series. Its time stamp (ms since the epoch) is part of it: a replay must send the same one."""

    name: str
    value: float
    step: int
    timestamp_ms: int


def check_name(name: str, what: str) -> None:
    """`UserError` unless MLflow takes `name` for a metric, a parameter or (our rule) the key of a run."""
    if not LEGAL_NAME.fullmatch(name):
        raise UserError(f"{what} {name!r}: MLflow allows 1 to 250 letters, digits and _ . - : / and space")


def connect(tracking_uri: str) -> Any:
    """An `MlflowClient` that gives up after one attempt of 10 s; whoever calls does the repeating.

    See `settle`: the limits hold for the whole process.
    """
    settle()
    from mlflow import MlflowClient  # 2.5 s

    return MlflowClient(tracking_uri=tracking_uri, registry_uri=tracking_uri)


def settle() -> None:
    """Before MLflow is imported: give up early, no telemetry. Process-wide, since MLflow knows no other settings."""
    os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] = "0"  # the default blocks for 247 s on a dead server
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = str(REQUEST_TIMEOUT_SECONDS)
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"


def why(error: Exception) -> str:
    """What a request's error says, in a line."""
    text = " ".join(str(error).split())
    return (text.partition("(Caused by ")[2].rstrip(")") or text)[:300]  # urllib3 puts the cause last


def outage(error: Exception) -> str | None:
    """Why it makes sense to try again later, or None when the server understood and refuses for good."""
    import requests
    from mlflow.exceptions import MlflowException, RestException

    reason = why(error)
    if isinstance(error, MlflowException):
        status, ours = error.get_http_status_code(), True
        if not isinstance(error, RestException) and (found := NOT_MLFLOWS.match(str(error))):
            status, ours = int(found[1]), False
    elif isinstance(error, requests.HTTPError) and error.response is not None:
        status, ours = error.response.status_code, error.response.text.lstrip().startswith("{")
    else:  # requests' other errors are OSErrors
        return reason if isinstance(error, ServiceError | OSError) else _storage_outage(error)
    if status in (401, 403):
        return f"refuses our credentials: {reason}"
    if not ours:  # a proxy's page, as while the server is put up again
        return None if status == TOO_LARGE else f"HTTP {status}, and not from MLflow"
    return reason if status >= 500 or status in PASSING_STATUS else None


def _storage_outage(error: Exception) -> str | None:
    """The same of what boto3 raises where MLflow's client puts artifacts into S3 by itself."""
    from infra import s3

    try:
        with s3.s3_errors("s3://artifacts of MLflow"):
            raise error
    except Exception as told:
        return " ".join(str(told).split())[:300] if s3.is_away(told) else None


# The UI opens an experiment of this kind with its training runs, others with a page for language-model traces.
TRAINING = {"mlflow.experimentKind": "custom_model_development"}


def experiment_id(client: Any, name: str) -> str:
    """The experiment's id; created if missing, by whoever comes first, or taken out of MLflow's trash with its runs."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name, tags=TRAINING))
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found is None:
        raise ServiceError(f"MLflow experiment {name!r} was deleted while it was looked up")
    if found.lifecycle_stage != "active":
        client.restore_experiment(found.experiment_id)
        log.warning("MLflow experiment %r was deleted: it is restored", name)
    return str(found.experiment_id)


def find_run(client: Any, experiment: str, key: str) -> Any | None:
    """The active run with this key in the experiment of this id, or None. Of several, the one with the least id."""
    return next(iter(_runs(client, experiment, key)), None)


def restored_run(client: Any, experiment: str, key: str) -> Any | None:
    """The run with this key out of MLflow's trash, active again; None where there is none."""
    from mlflow.entities import ViewType

    for run in _runs(client, experiment, key, view=ViewType.DELETED_ONLY)[:1]:
        client.restore_run(run.info.run_id)
        log.warning("MLflow's run %r was deleted: it is restored", run.info.run_name)
        return client.get_run(run.info.run_id)
    return None


def run_keys(client: Any, experiment: str, key: str) -> set[str]:
    """The keys of the active runs of `key` and below it (`key/...`)."""
    found: set[str] = set()
    for pattern in (f"= '{key}'", f"LIKE '{key}/%'"):
        token = None
        while token != "":
            page = client.search_runs([experiment], f"tags.`{KEY_TAG}` {pattern}", max_results=1000, page_token=token)
            found.update(run.data.tags[KEY_TAG] for run in page)
            token = page.token or ""
    return found


def _runs(client: Any, experiment: str, key: str, *, view: int | None = None) -> list[Any]:
    told = {} if view is None else {"run_view_type": view}
    found = client.search_runs([experiment], f"tags.`{KEY_TAG}` = '{key}'", max_results=50, **told)
    return sorted(found, key=lambda run: str(run.info.run_id))


def _settled(client: Any, experiment: str, key: str) -> Any | None:
    """The one run with this key, or None; further ones are deleted."""
    runs = _runs(client, experiment, key)
    for extra in runs[1:]:
        client.delete_run(extra.info.run_id)
    return runs[0] if runs else None


def ensure_run(
    client: Any,
    experiment: str,
    key: str,
    *,
    name: str,
    parent_run_id: str | None,
    params: Mapping[str, str],
    tags: Mapping[str, str],
    start_time_ms: int,
    reopen: bool,
) -> str:
    """The id of the one run with this key: found, if need be in MLflow's trash, or created and looked for again.

    When a request's answer was lost, or two drivers raced, more than one run can appear. The one with the least id
    stays, on every side, and the others are deleted; a replay brings what they held.
    """
    tags = {**tags, KEY_TAG: key} | ({"mlflow.parentRunId": parent_run_id} if parent_run_id else {})
    run = _settled(client, experiment, key) or restored_run(client, experiment, key)
    if run is None:
        reach("mlflow.before-create")
        created = client.create_run(experiment, start_time=start_time_ms, tags=_clipped(tags), run_name=name)
        reach("mlflow.after-create")
        run = _settled(client, experiment, key) or created
    elif reopen and run.info.status != "RUNNING":
        client.update_run(run.info.run_id, status="RUNNING")
    send_settings(client, run, params=params, tags=tags)
    return str(run.info.run_id)


def send_settings(client: Any, run: Any, *, params: Mapping[str, str], tags: Mapping[str, str]) -> None:
    """Log params that are not there yet (they cannot be changed), and tags that differ."""
    from mlflow.entities import Param, RunTag

    run_id = run.info.run_id
    new_params = [Param(n, str(v)[:PARAM_CHARACTERS]) for n, v in params.items() if n not in run.data.params]
    new_tags = [RunTag(n, v) for n, v in _clipped(tags).items() if run.data.tags.get(n) != v]
    for start in range(0, max(len(new_params), len(new_tags)), PARAMS_PER_CALL):
        part = slice(start, start + PARAMS_PER_CALL)
        client.log_batch(run_id, params=new_params[part], tags=new_tags[part])


def send_tags(client: Any, run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags that differ."""
    send_settings(client, client.get_run(run_id), params={}, tags=tags)


VIEW_TAG = "mlflow.sharedViewState."  # of an experiment; the UI reads the state of its "share" button from it


def send_view(client: Any, experiment: str, name: str, view: Mapping[str, Any]) -> None:
    """Keep how the UI's list of runs opens at an address with `viewStateShareKey=name`; columns are cut to fit."""
    text = json.dumps(view)
    for kept in range(len(view.get("selectedColumns", ())), 0, -1):
        if len(text) <= TAG_CHARACTERS:
            break
        columns = {part: view[part][: kept - 1] for part in ("selectedColumns", "columnOrder")}
        text = json.dumps({**view, **columns})
    if client.get_experiment(experiment).tags.get(VIEW_TAG + name) != text:
        client.set_experiment_tag(experiment, VIEW_TAG + name, text)


def delete_runs(client: Any, experiment: str, key: str) -> int:
    """Delete the run of `key` and those of its children (`key/...`); how many there were. MLflow's trash keeps them."""
    found = client.get_experiment_by_name(experiment)
    if found is None:
        return 0
    count = 0
    for pattern in (f"= '{key}'", f"LIKE '{key}/%'"):
        while runs := client.search_runs([found.experiment_id], f"tags.`{KEY_TAG}` {pattern}", max_results=100):
            for run in runs:
                client.delete_run(run.info.run_id)
                count += 1
    return count


def send_points(client: Any, run_id: str, points: Sequence[Point]) -> None:
    """Log points; the same point twice is one row, because its time stamp comes with it."""
    from mlflow.entities import Metric

    for start in range(0, len(points), POINTS_PER_CALL):
        metrics = [Metric(p.name, p.value, p.timestamp_ms, p.step) for p in points[start : start + POINTS_PER_CALL]]
        client.log_batch(run_id, metrics=metrics)
        reach("mlflow.after-points")


def send_inputs(client: Any, run_id: str, datasets: Sequence[tuple[str, str, str]]) -> None:
    """Log datasets as (name, SHA-256, role); the server knows them by name and digest, so a repetition adds nothing."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs = [
        DatasetInput(
            Dataset(
                name=name, digest=sha256[:DIGEST_CHARACTERS], source_type="code", source=json.dumps({"name": name})
            ),
            tags=[InputTag("mlflow.data.context", role)],
        )
        for name, sha256, role in datasets
    ]
    client.log_inputs(run_id, inputs)


def _clipped(tags: Mapping[str, str]) -> dict[str, str]:
    return {name: str(value)[:TAG_CHARACTERS] for name, value in tags.items()}
