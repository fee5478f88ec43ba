"""A promoted version in MLflow's registry, made from its manifest alone, so that it can be made again at any time.

The registered version is a pyfunc model whose code is `served_model.py`; its weights stay in S3, named by address and
SHA-256. Numbers and datasets come along, the model card is its description, and the aliases follow HEAD.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import logging
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import ServiceError
from infra.failpoint import reach
from infra.tracking import calls as mlflow_calls
from infra.tracking.calls import connect, experiment_id, find_run, outage
from infra.tracking.registry import MeasuredOn, project_aliases, register_version, registered
from study.models.card import card_files
from study.models.catalog import failed_gates, forced_reason, model_names, own_result, unmodified_result, version_key
from study.models.head import Head, model_prefix, read_head, read_manifest
from study.tracking import EXPERIMENT, flat

TEMPLATES = ("a photo of a {}.",)  # where the manifest has none
REQUIREMENTS = ("mlflow", "torch", "torchvision", "open_clip_torch", "boto3", "pillow", "numpy", "pandas")
_QUIET = threading.RLock()
EXAMPLE_SIZE, EXAMPLE_CLASSES = 32, ("a red square", "a blue circle")
SERVED = Path(__file__).with_name("served_model.py")
METRICS = ("clean_accuracy", "robust_accuracy")


def save_pyfunc(manifest: Mapping[str, Any], open_clip_config: bytes, folder: Path) -> Path:
    """Write the MLflow model of a version to `folder`, which must not exist: code, configuration, no weights."""
    mlflow_calls.settle()
    import mlflow.pyfunc

    weights = manifest["weights"]
    with tempfile.TemporaryDirectory(prefix="agft-pyfunc-") as scratch, _quiet():
        config = Path(scratch) / "open_clip_config.json"
        config.write_bytes(open_clip_config)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(SERVED),
            artifacts={"open_clip_config": str(config)},
            model_config={
                "weights": {"uri": weights["uri"], "sha256": weights["sha256"]},
                "templates": list(manifest.get("templates") or TEMPLATES),
            },
            signature=_signature(list(manifest.get("templates") or TEMPLATES)),
            input_example=_example(),
            pip_requirements=[f"{name}=={installed(name).partition('+')[0]}" for name in REQUIREMENTS],
            metadata={key: manifest[key] for key in ("model", "version", "study", "trial") if key in manifest},
        )
        _without_local_paths(folder / "MLmodel", config)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return folder


def _signature(templates: list[str]) -> Any:
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text = DataType.string
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image"), ColSpec(Array(text), "classes", required=False)]),
        params=ParamSchema(
            [ParamSpec("classes", text, [], shape=(-1,)), ParamSpec("templates", text, templates, shape=(-1,))]
        ),
    )


def _example() -> tuple[Any, dict[str, list[str]]]:
    """A red square on white, as base64 of a PNG, and two classes."""
    import pandas as pd  # type: ignore[import-untyped]
    from PIL import Image

    image = Image.new("RGB", (EXAMPLE_SIZE, EXAMPLE_SIZE), "white")
    image.paste((220, 30, 30), (8, 8, 24, 24))
    content = io.BytesIO()
    image.save(content, "PNG")
    return pd.DataFrame({"image": [base64.b64encode(content.getvalue()).decode()]}), {"classes": [*EXAMPLE_CLASSES]}


def _without_local_paths(mlmodel: Path, config: Path) -> None:
    """MLflow notes where the files were when they were saved; it never reads that again, and nobody else should."""
    text = mlmodel.read_text().replace(str(SERVED.resolve()), SERVED.name).replace(str(config), config.name)
    mlmodel.write_text(text)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """MLflow reports on standard error that it checks the example, and draws a bar for copying one small file."""
    log, name = logging.getLogger("mlflow"), "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"
    with _QUIET:  # of two threads that overlap, the second would put back what the first has set
        level, before = log.level, os.environ.get(name)
        try:
            log.setLevel(logging.ERROR)
            os.environ[name] = "false"
            yield
        finally:
            log.setLevel(level)
            os.environ.pop(name)
            if before is not None:
                os.environ[name] = before


def register_promoted(manifest: Mapping[str, Any], *, bucket: str, tracking_uri: str, run_id: str | None = None) -> int:
    """Register a version that is complete in S3 (again: nothing changes); its number in MLflow.

    `run_id`: the study's run; by default it is looked for, and if MLflow has lost it, a run of this name takes its
    place. Raises `ServiceError` when MLflow or S3 does not answer.
    """
    name, prefix = manifest["model"], model_prefix(bucket, manifest["model"], manifest["version"])
    config = storage.get_bytes(f"{prefix}/open_clip_config.json")
    if config is None:
        raise ServiceError(f"{prefix}/open_clip_config.json: no such object")
    card = card_files(manifest)
    with tempfile.TemporaryDirectory(prefix="agft-register-") as folder:
        files = {**card, "manifest.json": json.dumps(manifest, indent=2).encode()}
        artifacts = {file: Path(folder) / file for file in files}
        for file, content in files.items():
            artifacts[file].write_bytes(content)
        return register_version(
            tracking_uri, name=name, key=version_key(prefix, manifest), source_uri=prefix,
            run_id=run_id or _study_run(tracking_uri, manifest), metrics=_metrics(manifest),
            params=flat(manifest.get("config") or {}), tags=_tags(manifest),
            description=card["README.md"].decode(), artifacts=artifacts,
            model_folder=save_pyfunc(manifest, config[0], Path(folder) / "pyfunc"), datasets=_datasets(manifest),
        )  # fmt: skip


def _metrics(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Means on the confirm and final sets, of the version and of the unmodified CLIP."""
    found: dict[str, float] = {}
    for role in ("confirm", "final"):
        for owner, result in (("", own_result(manifest, role)), ("clip_", unmodified_result(manifest, role))):
            found |= {f"{role}_{owner}{metric}": float(result[metric]) for metric in METRICS if result}
    calibration = (manifest.get("calibration") or {}).get("model") or {}
    keys = ("calibration_error", "calibration_error_at_temperature")
    return found | {f"final_{key}": float(calibration[key]) for key in keys if key in calibration}


def _datasets(manifest: Mapping[str, Any]) -> list[MeasuredOn]:
    """Every confirm and final set with the version's accuracies there.

    The manifest's `inputs` has content hashes by name. Without one, MLflow still wants a digest: the name's own.
    """
    hashes = manifest.get("inputs") or {}
    found = []
    for role in ("confirm", "final"):
        for name, by_eps in ((own_result(manifest, role) or {}).get("datasets") or {}).items():
            scores = list(by_eps.values())
            metrics = {
                f"{role}_{metric}/{_legal(name)}": sum(score[metric] for score in scores) / len(scores)
                for metric in METRICS
            }
            sha256 = hashes.get(name) or hashlib.sha256(name.encode()).hexdigest()
            found.append(MeasuredOn(name, sha256, role, metrics))
    return found


def _legal(name: str) -> str:
    """`folder:~/my images` is no part of an MLflow metric's name."""
    return re.sub(r"[^\w.\- /]", "-", name)


def _tags(manifest: Mapping[str, Any]) -> dict[str, str]:
    tags = {
        "agft.study": manifest["study"],
        "agft.trial": manifest["trial"],
        "agft.weights.uri": manifest["weights"]["uri"],
        "agft.weights.sha256": manifest["weights"]["sha256"],
        "agft.version": manifest["version"],
        "agft.forced": forced_reason(manifest) or "no",
    }
    if manifest.get("promotion"):
        tags["agft.promotion"] = manifest["promotion"]
    failed = failed_gates(manifest)
    if failed is not None:
        tags["agft.gates"] = f"failed: {', '.join(failed)}" if failed else "passed"
    return {name: str(value) for name, value in tags.items()}


def _study_run(tracking_uri: str, manifest: Mapping[str, Any]) -> str:
    """The run of the study that the version is from, the newest of its name, or a run that stands for it."""
    try:
        client = mlflow_calls.connect(tracking_uri)
        experiment = mlflow_calls.experiment_id(client, EXPERIMENT)
        own = manifest.get("study_key")
        if own and (run := mlflow_calls.find_run(client, experiment, own)) is not None:
            return str(run.info.run_id)
        key, start = mlflow_calls.KEY_TAG, f"{manifest['study']}:"
        runs = client.search_runs(
            [experiment], f"tags.`{key}` LIKE '{start}%'", max_results=1000, order_by=["start_time DESC"]
        )
        parents = [
            run for run in runs if run.data.tags[key].startswith(start) and "mlflow.parentRunId" not in run.data.tags
        ]
        if parents:
            return str(parents[0].info.run_id)
        note = {"agft.note": "stands for a study whose run is gone"}
        return mlflow_calls.ensure_run(
            client, experiment, f"{start}promoted", name=manifest["study"], parent_run_id=None, params={}, tags=note,
            start_time_ms=int(time.time() * 1000), reopen=False,
        )  # fmt: skip
    except ServiceError:
        raise
    except Exception as error:
        reason = mlflow_calls.outage(error) or error
        raise ServiceError(
            f"MLflow at {tracking_uri}: looking for the run of {manifest['study']!r}: {reason}"
        ) from error


def project_head(bucket: str, name: str, tracking_uri: str) -> dict[str, int | None]:
    """Make MLflow's aliases `champion` and `previous` say what HEAD.json says; MLflow's version numbers by alias.

    None: HEAD has no such version, or MLflow does not know it yet (`register_promoted` it first, or `repair`).
    """
    head, _ = read_head(bucket, name)
    keys = {
        alias: None if number is None else _key(bucket, name, number)
        for alias, number in (("champion", head.champion), ("previous", head.previous))
    }
    return project_aliases(tracking_uri, name, keys)


def _key(bucket: str, name: str, number: int) -> str:
    return version_key(model_prefix(bucket, name, number), read_manifest(bucket, name, number))


def repair(bucket: str, name: str, tracking_uri: str, say: Callable[[str], None]) -> int:
    """Register every complete version that MLflow does not know, then set the aliases; how many were registered."""
    known = registered(tracking_uri, name).versions
    count = 0
    for number in model_names(bucket).get(name, []):
        manifest = read_manifest(bucket, name, number)
        if version_key(model_prefix(bucket, name, number), manifest) not in known:
            found = register_promoted(manifest, bucket=bucket, tracking_uri=tracking_uri)
            say(f"registered {name} version {number} in MLflow, as its version {found}")
            count += 1
    project_head(bucket, name, tracking_uri)
    return count


# MLflow's registry brought in line with HEAD: versions registered from their manifests, both aliases set.
#
# HEAD is the truth. Whoever promotes or rolls back calls this, also when the champion stays, so whatever an earlier one
# could not tell MLflow is made up for.

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
    if (found := registered(tracking_uri, name).versions.get(key)) is not None:
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
