"""Promoted versions as a promotion leaves them in S3: real weights, a manifest written last, HEAD."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from infra import storage
from study.models.head import model_prefix, read_head
from tests.support.small import small_clip
from trainers.model.weights import export_open_clip, save_weights
from trainers.schema.records import Score

CONFIG: dict[str, Any] = {
    "model": {"arch": "small-clip", "pretrained": "openai"},
    "method": {"name": "agft", "logit_scale": {"of_model": 1.8}, "scale_ratio": 0.4},
    "attack": {"name": "pgd", "norm": "linf", "eps": 4 / 255, "steps": 2},
    "data": {"train": "small-train", "dev": ["small-dev"]},
    "train": {"epochs": 4, "optimizer": {"name": "sgd", "lr": 4e-4}},
    "seed": 3,
}


def measured(correct: int, robust: int, *names: str, total: int = 200) -> dict[str, Any]:
    """The same counts on every set, as a promotion records them."""
    score = Score.of(correct=correct, robust=robust, total=total).model_dump(mode="json")
    return {
        "clean_accuracy": correct / total, "robust_accuracy": robust / total,
        "datasets": {name: {"4/255": score} for name in names},
    }  # fmt: skip


def manifest_of(version: int = 1, **changes: Any) -> dict[str, Any]:
    """A manifest as the first promotions wrote it; newer ones have more keys."""
    prefix = model_prefix("agft", "robust-clip", version)
    fields: dict[str, Any] = {
        "model": "robust-clip", "version": version, "study": "demo", "trial": 3, "config": CONFIG,
        "weights": {"uri": f"{prefix}/open_clip_model.safetensors", "sha256": "a" * 64, "bytes": 5_000_000},
        "source": {"uri": "s3://agft/studies/demo-1/trials/3/a000001/best.safetensors", "sha256": "a" * 64},
        "confirm": {"unmodified CLIP": measured(120, 20, "small-other"), "trial 3": measured(110, 70, "small-other")},
        "final": {"unmodified CLIP": measured(130, 30, "small-a", "small-b"),
                  "trial 3": measured(120, 80, "small-a", "small-b")},
        "final_accesses": 1,
        "provenance": {"code": {"revision": "0" * 40, "dirty": False}, "packages": {"torch": "2.14"}, "hostname": "h"},
    }  # fmt: skip
    return {**fields, **changes}


def ship(
    bucket: str, name: str, folder: Path, *, seed: int = 0, champion: bool = True, **changes: Any
) -> dict[str, Any]:
    """Put a small model into S3 as the next version of `name`, and make it the champion; its manifest."""
    version = reserve(bucket, name)
    prefix = model_prefix(bucket, name, version)
    clip = small_clip(seed)
    with torch.no_grad():
        clip.logit_scale.fill_(2.0)  # type: ignore[operator, union-attr]
    weights = save_weights(folder / f"{name}-{version}.safetensors", clip)
    config = export_open_clip(weights, folder / f"{name}-{version}") / "open_clip_config.json"
    storage.put_json(f"{prefix}/open_clip_config.json", json.loads(config.read_text()), if_absent=True)
    stored = storage.put_file(weights, f"{prefix}/open_clip_model.safetensors", if_absent=True)
    own = {"uri": stored.uri, "sha256": stored.sha256, "bytes": stored.size}
    manifest = manifest_of(version, model=name, weights=own, **changes)
    storage.put_json(f"{prefix}/manifest.json", manifest, if_absent=True)
    if champion:
        set_head(bucket, name, version, read_head(bucket, name)[0].champion)
    return manifest


def reserve(bucket: str, name: str) -> int:
    """The next number, taken."""
    base = f"{model_prefix(bucket, name)}/"
    parts = [stored.uri.removeprefix(base).partition("/")[0] for stored in storage.list_objects(base)]
    version = max((int(part) for part in parts if part.isdigit()), default=0) + 1
    storage.put_json(f"{model_prefix(bucket, name, version)}/reserved.json", {"study": "demo"}, if_absent=True)
    return version


def set_head(bucket: str, name: str, champion: int, previous: int | None) -> None:
    """Whatever HEAD was before."""
    generation = read_head(bucket, name)[0].generation + 1
    head = {"champion": champion, "previous": previous, "generation": generation}
    storage.put_json(f"{model_prefix(bucket, name)}/HEAD.json", head)


def corrupt(uri: str) -> None:
    """Change one byte in the middle of an object, the way a bad disk does: without its metadata being any the wiser."""
    bucket, key = storage.split_uri(uri)
    content = bytearray(storage.client().get_object(Bucket=bucket, Key=key)["Body"].read())
    content[len(content) // 2] ^= 1
    metadata = storage.client().head_object(Bucket=bucket, Key=key)["Metadata"]
    storage.client().put_object(Bucket=bucket, Key=key, Body=bytes(content), Metadata=metadata)
