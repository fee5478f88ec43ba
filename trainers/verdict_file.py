"""Verdicts as safetensors bytes: what a finished piece of an evaluation leaves, so that nothing is computed twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from trainers.readings import READINGS, Readings
from trainers.verdicts import Verdicts

__all__ = ["join_verdicts", "pack_verdicts", "unpack_verdicts"]

KINDS = ("clean", "attacked")


def pack_verdicts(verdicts: Verdicts, facts: Mapping[str, Any]) -> bytes:
    """A safetensors file of them; its header holds `facts`, JSON values about how they were made, and a SHA-256."""
    tensors = {"index": verdicts.index, "label": verdicts.label}
    for kind in KINDS:
        tensors |= {f"{kind}.{name}": getattr(getattr(verdicts, kind), name).contiguous() for name in READINGS}
    content = json.dumps({"name": verdicts.name, "eps": verdicts.eps, "facts": dict(facts)})
    return save(tensors, {"content": content, "sha256": _digest(content, tensors)})


def unpack_verdicts(data: bytes, source: str) -> tuple[Verdicts, dict[str, Any]]:
    """The verdicts and the facts, every byte of them checked; `ValueError` naming `source` if they are damaged."""
    try:
        tensors = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        if header["sha256"] != _digest(header["content"], tensors):
            raise ValueError("not the bytes that were written")
        content = json.loads(header["content"])
        clean, attacked = (Readings(**{name: tensors[f"{kind}.{name}"] for name in READINGS}) for kind in KINDS)
        verdicts = Verdicts(content["name"], tuple(content["eps"]), tensors["index"], tensors["label"], clean, attacked)
        return verdicts, dict(content["facts"])
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{source}: not a file of verdicts ({error})") from error


def _digest(content: str, tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(content.encode())
    for name in sorted(tensors):
        digest.update(repr((name, tuple(tensors[name].shape), str(tensors[name].dtype))).encode())
        digest.update(tensors[name].numpy().tobytes())
    return digest.hexdigest()


def join_verdicts(parts: Sequence[Verdicts]) -> Verdicts:
    """Verdicts on disjoint images of one set, in dataset order; needs at least one part."""
    first = parts[0]
    index = torch.cat([part.index for part in parts])
    order = index.argsort()
    if len(order) and not (index[order].diff() > 0).all():
        raise ValueError(f"{first.name}: an image is in two parts")
    return replace(
        first,
        index=index[order],
        label=torch.cat([part.label for part in parts])[order],
        clean=Readings.join([part.clean for part in parts]).at(order),
        attacked=Readings.join([part.attacked for part in parts], 1).each(lambda values: values[:, order]),
    )
