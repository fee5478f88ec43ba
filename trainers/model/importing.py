"""From an official checkpoint to a model of ours, and back to AGFT's own layout; every tensor exactly."""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.pretrained import list_pretrained_tags_by_model
from torch import Tensor, nn

from trainers.errors import UnknownName, UserError, nearest
from trainers.files import hash_file
from trainers.model import bundled as tiny
from trainers.model.build import Description, describe
from trainers.model.definitions import plain_openai_encoder
from trainers.model.fitting import check_activation, check_finite, check_fit, encoder_sizes, fill, whole_clip
from trainers.model.formats import read_checkpoint
from trainers.model.official import LAYOUTS, Unpacked, unpack
from trainers.model.pretrained import load_clip
from trainers.model.weights import load_weights, read_metadata
from trainers.schema.training import ModelConfig

UNRELATED = 0.9  # relative distance of two encoders: fine-tuning stays far below, independent ones are above 1


@dataclass(frozen=True)
class Imported:
    """A model and where it came from. `distance`: of its encoder from the base's, relative L2 over all matrices."""

    clip: nn.Module
    layout: str
    note: str
    tensors: int
    dtypes: tuple[str, ...]
    base: str | None
    distance: float | None
    provenance: dict[str, Any]


def default_base(arch: str) -> str:
    """Where the text side comes from when nobody says: the official codes all train OpenAI's CLIP."""
    tags = list_pretrained_tags_by_model(arch)
    if arch == tiny.ARCH:
        return "bundled"
    if "openai" not in tags:
        listed = f", one of: {', '.join(tags)}" if tags else ""
        raise UserError(f"--base: OpenAI has no {arch}; name the CLIP that the training started from{listed}")
    return "openai"


def import_checkpoint(
    path: Path, arch: str, *, layout: str = "auto", base: str | None = None, gelu: bool = False
) -> Imported:
    """The model in a checkpoint of one of LAYOUTS; its text side is that of `base` (a tag or a place).

    `gelu`: it was trained without QuickGELU, of which plain tensors say nothing.

    Raises `UserError` with everything that does not fit, in one message.
    """
    tiny.register()
    if arch not in open_clip.list_models():
        close = nearest(arch, open_clip.list_models())
        hint = f"; nearest: {', '.join(close)}" if close else ""
        raise UnknownName(f"--arch: open_clip does not know {arch!r}{hint}")
    found = unpack(read_checkpoint(path), layout, str(path))
    if found.whole:
        clip, base = whole_clip(found, arch, str(path), gelu=gelu), None
        distance = None
    else:
        check_fit(encoder_sizes(arch), found, str(path), f"image encoder of {arch}")  # before a base is downloaded
        check_activation(found, arch, base, str(path), gelu=gelu)
        base = base or default_base(arch)
        clip = load_clip(ModelConfig(arch=arch, pretrained=base))
        before = {name: value.clone() for name, value in _visual(clip).state_dict().items()}
        fill(_visual(clip), found, str(path), f"image encoder of {arch}")
        distance = relative_distance(before, _visual(clip).state_dict())
        clip.__dict__["description"] = _described(describe(clip), found)
        check_finite(clip, str(path))
    halves = {name: _dtype(value) for name, value in found.tensors.items() if _dtype(value) not in ("float32", "int64")}
    return Imported(
        clip=clip,
        layout=found.layout,
        note=found.note,
        tensors=len(found.tensors),
        dtypes=tuple(sorted({_dtype(value) for value in found.tensors.values() if value.is_floating_point()})),
        base=base,
        distance=distance,
        provenance={
            "layout": found.layout,
            "file": path.name,
            "sha256": hash_file(path),
            "base": base,
            "dtypes": halves,
        },
    )


def _visual(clip: nn.Module) -> nn.Module:
    assert isinstance(clip.visual, nn.Module)
    return clip.visual


def _dtype(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _described(description: Description, found: Unpacked) -> Description:
    """With the pixels' normalisation that the official code trained with."""
    pixels = LAYOUTS[found.layout].pixels
    if pixels is None:
        return description
    preprocess = {**description.preprocess, "mean": list(pixels[0]), "std": list(pixels[1])}
    return Description(description.arch, description.model_cfg, preprocess)


def relative_distance(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> float:
    """||after - before|| / ||before|| over all matrices and kernels."""
    names = [name for name, value in before.items() if value.is_floating_point() and value.ndim > 1]
    change = sum(float((after[name] - before[name]).double().square().sum()) for name in names)
    return (change / max(sum(float(before[name].double().square().sum()) for name in names), 1e-30)) ** 0.5


def export_agft(weights_path: Path, out: Path) -> Path:
    """Write the encoder as AGFT's `validate.py` loads it. What was imported from half precision is written so again."""
    clip, metadata = load_weights(weights_path), read_metadata(weights_path)
    description = describe(clip)
    pixels = [list(description.preprocess[name]) for name in ("mean", "std")]
    if not plain_openai_encoder(description.model_cfg):
        raise UserError(
            f"{weights_path}: AGFT's code builds its model with OpenAI's `clip` package (plain ViTs and ResNets, with "
            f"QuickGELU), which has no {description.arch}; use --layout open-clip"
        )
    if pixels != [list(open_clip.OPENAI_DATASET_MEAN), list(open_clip.OPENAI_DATASET_STD)]:
        raise UserError(
            f"{weights_path}: normalises pixels with mean {pixels[0]}, and AGFT's code always with CLIP's; "
            "use --layout open-clip"
        )
    dtypes = metadata["extra"].get("import", {}).get("dtypes", {})
    encoder = OrderedDict(
        (name, value.to(getattr(torch, dtypes[name])) if name in dtypes else value)
        for name, value in _visual(clip).state_dict().items()
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as folder:
        torch.save({"modules": {"clip.visual": encoder}, "params": {}}, Path(folder, "part"))
        os.replace(Path(folder, "part"), out)
    return out
