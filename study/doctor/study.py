"""Whether this machine has what a study needs: its datasets and its weights."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from infra.checks.diagnosis import Diagnosis, failed, ok, warning
from trainers.table import Origin, lacking

DATASETS, WEIGHTS, ENTRIES = "datasets", "weights", "entries"
HUB_SECONDS = 4.0
S3 = "s3://"


@dataclass(frozen=True)
class StudyNeeds:
    """Of a study file, what a machine can be asked for. `datasets`: path in the file -> name."""

    name: str
    arch: str
    pretrained: str
    is_place: bool
    datasets: Mapping[str, str]
    gpus_per_worker: float
    entries: tuple[Origin, ...] = ()  # of installed packages


def needs_of(path: Path) -> StudyNeeds:
    """Of the study file at `path`; `UserError` with every mistake if it is not one."""
    from study.artifacts.datasets import named_sets
    from study.spec.files import load_study
    from study.spec.outside import outside_entries

    spec = load_study(path)
    model = spec.model
    return StudyNeeds(
        spec.name,
        model.arch,
        model.pretrained,
        model.names_a_place(),
        named_sets(spec),
        float(spec.resources.gpus_per_worker),
        tuple(outside_entries(spec).values()),
    )


def check_entries(needs: StudyNeeds) -> list[Diagnosis]:
    """Whether the packages are here whose entries the study names."""
    missing = lacking(needs.entries)
    remedy = "install the same version on every node"
    return [failed(ENTRIES, text, remedy) for text in missing] or [ok(ENTRIES, ", ".join(map(str, needs.entries)))]


def check_datasets(needs: StudyNeeds) -> list[Diagnosis]:
    """Every set that cannot be loaded here, with what to do."""
    from trainers.data import dataset_entry, not_ready, safe_name
    from trainers.data.stored import prepared_place, state

    rows = [
        failed(DATASETS, text.partition("; run: ")[0], f"run: {text.partition('; run: ')[2] or 'agft data list'}")
        for text in not_ready(needs.datasets)
    ]
    place = prepared_place()
    if place.startswith(S3) and not rows:
        from study.artifacts.datasets import prepared_in_s3

        there = prepared_in_s3(place)
        for path, name in needs.datasets.items():
            entry = dataset_entry(name, path)
            if state(entry) not in ("drawn", "prepared") and safe_name(name) not in there:
                rows.append(failed(DATASETS, f"{path}: {name!r} is not in {place}", f"run: agft data prepare {name}"))
    return rows or [ok(DATASETS, f"{', '.join(dict.fromkeys(needs.datasets.values()))}: can be loaded")]


def check_weights(needs: StudyNeeds) -> list[Diagnosis]:
    """Whether the weights are here, or can be fetched. They are not loaded."""
    return [_weights(needs)]


def _weights(needs: StudyNeeds) -> Diagnosis:
    pretrained = needs.pretrained
    if pretrained == "bundled":
        return ok(WEIGHTS, "bundled with the package")
    if pretrained.startswith(S3):
        return _in_s3(pretrained)
    if pretrained.startswith("hf-hub:"):
        return _on_hub(pretrained.partition(":")[2], "open_clip_config.json", pretrained)
    if needs.is_place:
        path = Path(pretrained.removeprefix("local-dir:")).expanduser()
        if path.exists():
            return ok(WEIGHTS, f"{path}")
        remedy = "put it there, on every node, or name an s3:// address"
        return failed(WEIGHTS, f"model.pretrained: no such file or folder: {path}", remedy)
    return _tag(needs.arch, pretrained)


def _in_s3(uri: str) -> Diagnosis:
    from infra import storage

    there = bool(storage.list_objects(uri)) if uri.endswith("/") else storage.head(uri) is not None
    if there:
        return ok(WEIGHTS, uri)
    return failed(WEIGHTS, f"model.pretrained: nothing at {uri}", "correct the address, or upload the weights")


def _tag(arch: str, tag: str) -> Diagnosis:
    import open_clip
    from open_clip.pretrained import get_pretrained_cfg

    found = get_pretrained_cfg(arch, tag)
    if not found:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(arch)[:6]) or "none"
        return failed(WEIGHTS, f"model.pretrained: {arch} has no weights {tag!r}", f"known: {known}")
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
