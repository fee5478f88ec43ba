"""Verdicts as a safetensors file: what a finished piece of an evaluation leaves, so that nothing is computed twice."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from trainers.disk import write_whole
from trainers.readings import READINGS, Readings
from trainers.verdicts import Verdicts

__all__ = ["join_verdicts", "load_verdicts", "save_verdicts"]

KINDS = ("clean", "attacked")


def save_verdicts(path: Path, verdicts: Verdicts) -> None:
    """Write them whole or not at all."""
    tensors = {"index": verdicts.index, "label": verdicts.label}
    for kind in KINDS:
        tensors |= {f"{kind}.{name}": getattr(getattr(verdicts, kind), name).contiguous() for name in READINGS}
    write_whole(path, save(tensors, {"name": verdicts.name, "eps": json.dumps(verdicts.eps)}))


def load_verdicts(path: Path) -> Verdicts:
    """Read them back; `ValueError` if the file is damaged or is something else, OSError if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            meta = file.metadata() or {}
            clean, attacked = (
                Readings(**{name: file.get_tensor(f"{kind}.{name}") for name in READINGS}) for kind in KINDS
            )
            index, label = file.get_tensor("index"), file.get_tensor("label")
            return Verdicts(meta["name"], tuple(json.loads(meta["eps"])), index, label, clean, attacked)
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a file of verdicts ({error})") from error


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
