"""The frozen model's clean embeddings of a training set, and the key under which they are kept."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.data import ImageSet
from trainers.files import cache_folder
from trainers.model.robust import RobustCLIP
from trainers.model.weights import hash_weights
from trainers.teacher.cache import SharedFiles, cached_embeddings

FORMAT = 2  # of the file and of the arithmetic: raise it when either changes
RESIZE = "bicubic, antialiased, corners not aligned"  # RobustCLIP's rule for images of another size


def teacher_embeddings(
    model: RobustCLIP,
    image_set: ImageSet,
    *,
    device: torch.device,
    shared: SharedFiles | None = None,
    folder: Path | None = None,
) -> Tensor:
    """Raw embeddings, fp32 [N, D] on the CPU, of every image by `model` as it is now; called on every rank together.

    A private memory map of a verified file below `folder` (default `cache_folder()`), so that `embeddings[index]` reads
    these rows only. The file comes from the disk, else from `shared`, else it is computed, split over the ranks; of
    several processes at once, one computes. Its bytes depend neither on the number of workers nor on batch sizes.
    Where the disk cannot be written, the embeddings are held in memory.
    """
    parts = key_parts(model, image_set)
    key = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:32]
    path = (folder or cache_folder()) / "teacher" / key / "embeddings.safetensors"
    with _in_fp32(model):
        return cached_embeddings(
            model,
            image_set,
            parts,
            path,
            device=torch.device(device),
            shared=shared,
            shared_name=f"teacher/{key}.safetensors",
        )


def key_parts(model: RobustCLIP, image_set: ImageSet) -> dict[str, Any]:
    """Everything that decides the embeddings, as JSON values."""
    assert getattr(model, "prompt", None) is None, "the frozen model has no prompt"
    return {
        "format": FORMAT,
        "dtype": "float32",
        "weights": hash_weights(model.visual),
        "structure": _hash_structure(model.visual),
        "dataset": image_set.content_hash,
        "images": len(image_set),
        "transform": {
            "size": model.image_size,
            "mean": model.mean.flatten().tolist(),
            "std": model.std.flatten().tolist(),
            "resize": RESIZE,
        },
    }


def _hash_structure(visual: nn.Module) -> str:
    """SHA-256 over the kind and the plain settings of every module: heads, activation, pooling, strides, epsilons."""
    rows = []
    for name, module in visual.named_modules():
        settings = {
            key: value
            for key, value in vars(module).items()
            if not key.startswith("_") and key not in ("training", "grad_checkpointing") and _is_plain(value)
        }
        rows.append((name, f"{type(module).__module__}.{type(module).__qualname__}", settings))
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()


def _is_plain(value: object) -> bool:
    """A number, a word, nothing, or a sequence of such."""
    if isinstance(value, tuple | list):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, str | int | float)


@contextlib.contextmanager
def _in_fp32(model: RobustCLIP) -> Iterator[None]:
    """The teacher is exact whatever its student trains in."""
    precision = model.precision
    try:
        model.precision = "fp32"
        yield
    finally:
        model.precision = precision
