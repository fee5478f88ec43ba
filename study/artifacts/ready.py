"""What a study needs and a machine may lack, found before anything starts: datasets, weights, cores and GPUs.

One set of checks: `agft plan`, `run`, `submit` and `compare` refuse what fails here, `agft doctor` makes them on every
node, and `agft validate` tells of it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from infra.checks.diagnosis import Diagnosis, failed, ok, warning
from infra.checks.machine import gpus_here
from infra.process import usable_cores
from infra.services import LOOPBACK, endpoint_variable, proxy_to
from study.artifacts.datasets import named_sets
from study.errors import UserError
from study.spec.config import StudyConfig
from trainers.data import DATASETS, not_ready
from trainers.errors import UserError as TrainersUserError
from trainers.schema.training import ModelConfig

WEIGHTS = "weights"
HUB_SECONDS, SERVICE_SECONDS = 4.0, 3.0
S3 = "s3://"


def check_ready(spec: StudyConfig, *, room: bool = True) -> None:
    """Refuse a study that this machine cannot run; on another cluster, its nodes say the same.

    `room`: also one whose trials do not fit here, or whose datasets of the table are not prepared yet, which can be
    planned for another machine. A folder has to be here even then, since its pictures are counted.
    """
    if os.environ.get("RAY_ADDRESS"):
        return
    lack = trials_here(spec)[1] if room else ""
    if problems := [*missing(spec, named_sets(spec) if room else uncounted(spec)), *([lack] if lack else [])]:
        raise UserError("\n".join(problems))


def missing(spec: StudyConfig, sets: Mapping[str, str]) -> list[str]:
    """Those datasets (path -> name) that cannot be loaded here, and a file of weights that is not here or does not fit:
    one line each."""
    return [*not_ready(sets), *([wrong] if (wrong := wrong_weights(spec.model)) else [])]


def uncounted(spec: StudyConfig) -> dict[str, str]:
    """Datasets by path whose size is known by looking at them alone."""
    return {path: name for path, name in named_sets(spec).items() if name not in DATASETS}


def missing_sets(spec: StudyConfig) -> list[str]:
    """Datasets that cannot be loaded here, one line each; of a cluster's nodes nothing is known."""
    return [] if os.environ.get("RAY_ADDRESS") else not_ready(named_sets(spec))


def unprepared(spec: StudyConfig) -> list[str]:
    """The same, and whether no trial fits: another machine may do better."""
    lack = "" if os.environ.get("RAY_ADDRESS") else trials_here(spec)[1]
    return [*missing_sets(spec), *([lack] if lack else [])]


def wrong_weights(model: ModelConfig) -> str:
    """What is wrong with the file or folder that `model` names, or that it is no tag of its architecture; or ''."""
    if model.pretrained.startswith((S3, "hf-hub:")):
        return ""
    if not model.names_a_place():
        return "" if model.pretrained == "bundled" else _wrong_tag(model.arch, model.pretrained)
    if os.environ.get("RAY_ADDRESS"):  # whose nodes have other files
        return ""
    found = weights_finding(model)
    return f"{found.detail}{f'; {found.remedy}' if found.remedy else ''}" if found.state == "failed" else ""


def trials_here(spec: StudyConfig) -> tuple[int, str]:
    """How many trials fit side by side on this machine, and if none does, why."""
    wanted = spec.resources
    have = {"CPU": float(usable_cores()), "GPU": float(gpus_here() if wanted.gpus_per_worker else 0)}
    need = wanted.of_trial()
    fitting = int(min(have[name] / amount + 1e-9 for name, amount in need.items()))
    if fitting == 0:
        lacking = [f"{need[name]:g} {word}" for name, word in (("CPU", "CPU cores"), ("GPU", "GPUs"))
                   if need.get(name, 0.0) > have[name]]  # fmt: skip
        return 0, (
            f"resources: one trial needs {' and '.join(lacking)} ({wanted.workers} workers), this machine has "
            f"{have['CPU']:g} cores and {gpus_here()} GPUs: 0 trials fit; lower workers, cpus_per_worker or "
            "gpus_per_worker, or set RAY_ADDRESS to a larger cluster"
        )
    return fitting if wanted.max_concurrent == "auto" else min(fitting, wanted.max_concurrent), ""


def silent_services(environ: Mapping[str, str]) -> list[str]:
    """Services that the environment names and that do not answer, one line each."""
    found = []
    for name in (endpoint_variable(environ), "MLFLOW_TRACKING_URI"):
        url = environ.get(name, "")
        address = urlsplit(url)
        host = address.hostname or ""
        by_proxy = host not in LOOPBACK and proxy_to(url)
        if address.scheme in ("http", "https") and host and not by_proxy:
            try:
                port = address.port or {"http": 80, "https": 443}[address.scheme]
                socket.create_connection((host, port), timeout=SERVICE_SECONDS).close()
            except (OSError, ValueError) as error:
                where = f"{host}{f':{address.port}' if address.port else ''}"
                found.append(f"{name}: {where} does not answer ({getattr(error, 'strerror', None) or error})")
    return found


def weights_finding(model: ModelConfig) -> Diagnosis:
    """Whether the weights of `model` are here and fit its architecture, or can be fetched; no model is made."""
    from trainers.model.pretrained import check_file

    pretrained = model.pretrained
    if pretrained == "bundled":
        return ok(WEIGHTS, "bundled with the package")
    if pretrained.startswith(S3):
        return _in_s3(pretrained)
    if pretrained.startswith("hf-hub:"):
        return _on_hub(pretrained.partition(":")[2], "open_clip_config.json", pretrained)
    if model.names_a_place():
        path = Path(pretrained.removeprefix("local-dir:")).expanduser()
        try:
            note = check_file(model)
        except TrainersUserError as error:
            remedy = "" if path.exists() else "put it there, on every node, or name an s3:// address"
            return failed(WEIGHTS, str(error), remedy)
        return ok(WEIGHTS, f"{path}: fits {model.arch}{f'; {note}' if note else ''}")
    return _tag(model.arch, pretrained)


def _in_s3(uri: str) -> Diagnosis:
    from infra import storage

    there = bool(storage.list_objects(uri)) if uri.endswith("/") else storage.head(uri) is not None
    if there:
        return ok(WEIGHTS, uri)
    return failed(WEIGHTS, f"model.pretrained: nothing at {uri}", "correct the address, or upload the weights")


def _wrong_tag(arch: str, tag: str) -> str:
    from trainers.model.pretrained import check_tag

    try:
        check_tag(arch, tag)
    except TrainersUserError as error:
        return str(error)
    return ""


def _tag(arch: str, tag: str) -> Diagnosis:
    from open_clip.pretrained import get_pretrained_cfg

    if wrong := _wrong_tag(arch, tag):
        return failed(WEIGHTS, wrong, "")
    found = get_pretrained_cfg(arch, tag)
    repository, _, name = str(found.get("hf_hub", "")).rpartition("/")
    if repository:
        return _on_hub(repository, name, f"{arch} {tag}")
    host = urlsplit(found.get("url", "")).hostname
    return warning(WEIGHTS, f"{arch} {tag}: fetched from {host} at first use", "load it once with network")


def _on_hub(repository: str, name: str, shown: str) -> Diagnosis:
    from huggingface_hub import constants, try_to_load_from_cache

    candidates = [name] if name else ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
    candidates += ["open_clip_model.safetensors"] if name.endswith(".bin") else []
    if any(isinstance(try_to_load_from_cache(repository, each), str) for each in candidates):
        return ok(WEIGHTS, f"{shown}: in the hub's cache ({constants.HF_HUB_CACHE})")
    endpoint = urlsplit(constants.ENDPOINT)
    where = f"{shown}: not here, and"
    remedy = (
        f"download https://huggingface.co/{repository} elsewhere and give the path, or fill {constants.HF_HUB_CACHE}"
    )
    if constants.HF_HUB_OFFLINE:
        return failed(WEIGHTS, f"{where} HF_HUB_OFFLINE forbids the hub", remedy)
    if not any(os.environ.get(proxy) for proxy in ("https_proxy", "HTTPS_PROXY")):
        try:
            socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=HUB_SECONDS).close()
        except OSError as error:
            return failed(WEIGHTS, f"{where} {endpoint.hostname} is not reachable ({error})", remedy)
    text = f"{shown}: not here; fetched from {endpoint.hostname} at first use"
    return warning(WEIGHTS, text, "load it once before, if the nodes have no network")
