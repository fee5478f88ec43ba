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
from collections.abc import Callable, Iterator
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from infra import storage
from infra.errors import ServiceError
from infra.failpoint import reach
from infra.tracking import calls as mlflow_calls
from infra.tracking.registry import MeasuredOn, project_aliases, register_version, registered
from study.models.card import card_files
from study.models.catalog import model_names
from study.models.head import Head, read_head, read_manifest
from study.models.manifest import Manifest
from study.models.signing import SIGNATURE
from study.statistics import METRICS
from study.tracking import EXPERIMENT, flat

TEMPLATES = ["a photo of a {}."]  # where the caller names none
REQUIREMENTS = ("mlflow", "torch", "torchvision", "open_clip_torch", "boto3", "pillow", "numpy", "pandas")
CHECKS_SIGNATURES = ("model-signing", "pyOpenSSL")
_QUIET = threading.RLock()
EXAMPLE_SIZE, EXAMPLE_CLASSES = 32, ("a red square", "a blue circle")
SERVED = Path(__file__).with_name("served_model.py")


def save_pyfunc(manifest: Manifest, open_clip_config: bytes, folder: Path, *, signed: bool = False) -> Path:
    """Write the MLflow model of a version to `folder`, which must not exist: code, configuration, no weights.

    `signed`: the version has a signature, so that whoever serves it needs what checks one.
    """
    mlflow_calls.settle()
    import mlflow.pyfunc

    with tempfile.TemporaryDirectory(prefix="agft-pyfunc-") as scratch, _quiet():
        config = Path(scratch) / "open_clip_config.json"
        config.write_bytes(open_clip_config)
        mlflow.pyfunc.save_model(
            folder,
            python_model=str(SERVED),
            artifacts={"open_clip_config": str(config)},
            model_config={"weights": manifest.weights.model_dump(include={"uri", "sha256"}), "templates": TEMPLATES},
            signature=_signature(),
            input_example=_example(),
            pip_requirements=[
                f"{name}=={installed(name).partition('+')[0]}"
                for name in (*REQUIREMENTS, *(CHECKS_SIGNATURES if signed else ()))
            ],
            metadata=manifest.model_dump(include={"model", "version", "study", "trial"}),
        )
        _without_local_paths(folder / "MLmodel", config)
    shutil.rmtree(folder / "__pycache__", ignore_errors=True)
    return folder


def _signature() -> Any:
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import AnyType, Array, ColSpec, DataType, ParamSchema, ParamSpec, Schema

    text = DataType.string
    return ModelSignature(
        inputs=Schema([ColSpec(AnyType(), "image"), ColSpec(Array(text), "classes", required=False)]),
        params=ParamSchema(
            [ParamSpec("classes", text, [], shape=(-1,)), ParamSpec("templates", text, TEMPLATES, shape=(-1,))]
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


def register_promoted(manifest: Manifest, *, tracking_uri: str, run_id: str | None = None) -> int:
    """Register a version that is complete in S3 (again: nothing changes); its number in MLflow.

    `run_id`: the study's run; by default it is looked for, and if MLflow has lost it, a run of this name takes its
    place. Raises `ServiceError` when MLflow or S3 does not answer.
    """
    config = storage.get_bytes(f"{manifest.prefix}/open_clip_config.json")
    if config is None:
        raise ServiceError(f"{manifest.prefix}/open_clip_config.json: no such object")
    signed = storage.head(f"{manifest.prefix}/{SIGNATURE}") is not None
    card = card_files(manifest)
    with tempfile.TemporaryDirectory(prefix="agft-register-") as folder:
        files = {**card, "manifest.json": json.dumps(manifest.record(), indent=2).encode()}
        artifacts = {file: Path(folder) / file for file in files}
        for file, content in files.items():
            artifacts[file].write_bytes(content)
        return register_version(
            tracking_uri, name=manifest.model, key=manifest.key, source_uri=manifest.prefix,
            run_id=run_id or _study_run(tracking_uri, manifest), metrics=_metrics(manifest),
            params=flat(manifest.config), tags=_tags(manifest),
            description=card["README.md"].decode(), artifacts=artifacts,
            model_folder=save_pyfunc(manifest, config[0], Path(folder) / "pyfunc", signed=signed),
            datasets=_datasets(manifest),
        )  # fmt: skip


def _metrics(manifest: Manifest) -> dict[str, float]:
    """Means on the confirm and final sets, of the version and of the unmodified CLIP."""
    found: dict[str, float] = {}
    for role in ("confirm", "final"):
        for owner, result in (("", manifest.own(role)), ("clip_", manifest.unmodified(role))):
            found |= {f"{role}_{owner}{metric}": float(result[metric]) for metric in METRICS}
    if manifest.calibration:
        own = manifest.calibration.model
        found["final_calibration_error"] = own.calibration_error
        found["final_calibration_error_at_temperature"] = own.calibration_error_at_temperature
    return found


def _datasets(manifest: Manifest) -> list[MeasuredOn]:
    """Every confirm and final set with the version's accuracies there.

    The manifest's `inputs` has content hashes by name. Without one, MLflow still wants a digest: the name's own.
    """
    found = []
    for role in ("confirm", "final"):
        for name, by_eps in manifest.own(role)["datasets"].items():
            scores = list(by_eps.values())
            metrics = {
                f"{role}_{metric}/{_legal(name)}": sum(score[metric] for score in scores) / len(scores)
                for metric in METRICS
            }
            sha256 = manifest.inputs.get(name) or hashlib.sha256(name.encode()).hexdigest()
            found.append(MeasuredOn(name, sha256, role, metrics))
    return found


def _legal(name: str) -> str:
    """`folder:~/my images` is no part of an MLflow metric's name."""
    return re.sub(r"[^\w.\- /]", "-", name)


def _tags(manifest: Manifest) -> dict[str, str]:
    failed = manifest.failed_gates
    return {
        "agft.study": manifest.study,
        "agft.trial": str(manifest.trial),
        "agft.weights.uri": manifest.weights.uri,
        "agft.weights.sha256": manifest.weights.sha256,
        "agft.version": str(manifest.version),
        "agft.forced": manifest.forced or "no",
        "agft.promotion": manifest.promotion,
        "agft.gates": f"failed: {', '.join(failed)}" if failed else "passed",
    }


def _study_run(tracking_uri: str, manifest: Manifest) -> str:
    """The run of the study that the version is from, the newest of its name, or a run that stands for it."""
    try:
        client = mlflow_calls.connect(tracking_uri)
        experiment = mlflow_calls.experiment_id(client, EXPERIMENT)
        looked = (mlflow_calls.find_run, mlflow_calls.restored_run)
        if run := next(filter(None, (look(client, experiment, manifest.study_key) for look in looked)), None):
            return str(run.info.run_id)
        key, start = mlflow_calls.KEY_TAG, f"{manifest.study}:"
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
            client, experiment, f"{start}promoted", name=manifest.study, parent_run_id=None, params={}, tags=note,
            start_time_ms=int(time.time() * 1000), reopen=False,
        )  # fmt: skip
    except ServiceError:
        raise
    except Exception as error:
        reason = mlflow_calls.outage(error) or error
        raise ServiceError(f"MLflow at {tracking_uri}: looking for the run of {manifest.study!r}: {reason}") from error


def project_head(bucket: str, name: str, tracking_uri: str) -> dict[str, int | None]:
    """Make MLflow's aliases `champion` and `previous` say what HEAD.json says; MLflow's version numbers by alias.

    None: HEAD has no such version, or MLflow does not know it yet (`register_promoted` it first, or `repair`).
    """
    head, _ = read_head(bucket, name)
    keys = {
        alias: None if number is None else read_manifest(bucket, name, number).key
        for alias, number in (("champion", head.champion), ("previous", head.previous))
    }
    return project_aliases(tracking_uri, name, keys)


def repair(bucket: str, name: str, tracking_uri: str, say: Callable[[str], None]) -> int:
    """Register every complete version that MLflow does not know, then set the aliases; how many were registered."""
    known = registered(tracking_uri, name).versions
    count = 0
    for number in model_names(bucket).get(name, []):
        manifest = read_manifest(bucket, name, number)
        if manifest.key not in known:
            found = register_promoted(manifest, tracking_uri=tracking_uri)
            say(f"registered {name} version {number} in MLflow, as its version {found}")
            count += 1
    project_head(bucket, name, tracking_uri)
    return count


# MLflow's registry brought in line with HEAD: versions registered from their manifests, both aliases set.
#
# HEAD is the truth. Whoever promotes or rolls back calls this, also when the champion stays, so whatever an earlier one
# could not tell MLflow is made up for.

RunOf = Callable[[Manifest], str | None]


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


def followed(bucket: str, name: str, tracking_uri: str, run_of: RunOf | None = None) -> str:
    """`follow_head`; why it could not, or nothing. The next promotion or rollback makes up for it."""
    try:
        follow_head(bucket, name, tracking_uri, run_of)
    except ServiceError as error:
        return " ".join(str(error).split())
    return ""


def _registered(bucket: str, name: str, version: int, tracking_uri: str, run_of: RunOf | None) -> int:
    """MLflow's number of a version, which is registered if it is not."""
    manifest = read_manifest(bucket, name, version)
    if (found := registered(tracking_uri, name).versions.get(manifest.key)) is not None:
        return found
    return register_promoted(manifest, tracking_uri=tracking_uri, run_id=run_of(manifest) if run_of else None)
