"""From an official checkpoint to a model of ours, and back to AGFT's own layout; every tensor exactly."""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.model import _build_vision_tower, convert_to_custom_text_state_dict
from open_clip.pretrained import list_pretrained_tags_by_model
from torch import Tensor, nn

from trainers import tiny
from trainers.checkpoint import load_weights, read_metadata
from trainers.config import ModelConfig
from trainers.definitions import encoders_like, plain_openai_encoder, quick_gelu
from trainers.errors import UnknownName, UserError, nearest
from trainers.model import fingerprint
from trainers.official import LAYOUTS, Unpacked, read_checkpoint, unpack
from trainers.pretrained import Description, build_clip, describe, load_clip

__all__ = ["UNRELATED", "Imported", "default_base", "export_agft", "import_checkpoint"]

UNRELATED = 0.9  # relative distance of two encoders: fine-tuning stays far below, independent ones are above 1
SHOWN = 3  # names of a long list in a message


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


def import_checkpoint(path: Path, arch: str, *, layout: str = "auto", base: str | None = None) -> Imported:
    """The model in a checkpoint of one of LAYOUTS; its text side is that of `base` (a tag or a place).

    Raises `UserError` with everything that does not fit, in one message.
    """
    tiny.register()
    if arch not in open_clip.list_models():
        close = nearest(arch, open_clip.list_models())
        hint = f"; nearest: {', '.join(close)}" if close else ""
        raise UnknownName(f"--arch: open_clip does not know {arch!r}{hint}")
    found = unpack(read_checkpoint(path), layout, str(path))
    if not found.whole:
        _check_fit(_encoder_sizes(arch), found, str(path), f"image encoder of {arch}")  # before a base is downloaded
    _check_activation(found, arch, base, str(path))
    if found.whole:
        clip, base = _whole(found, arch, str(path)), None
        distance = None
    else:
        base = base or default_base(arch)
        clip = load_clip(ModelConfig(arch=arch, pretrained=base))
        before = {name: value.clone() for name, value in _visual(clip).state_dict().items()}
        _fill(_visual(clip), found, str(path), f"image encoder of {arch}")
        distance = relative_distance(before, _visual(clip).state_dict())
        clip.__dict__["description"] = _described(describe(clip), found)
    if not all(map(math.isfinite, fingerprint(clip))):
        raise UserError(f"{path}: the model of these weights does not compute finite numbers")
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
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
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


def _check_activation(found: Unpacked, arch: str, base: str | None, source: str) -> None:
    """OpenAI's weights in a model without QuickGELU load without a word and give wrong numbers."""
    twin = f"{arch}-quickgelu"
    own_base = found.layout == "fare" and base not in (None, "openai")  # RobustVLM's code takes any open_clip model
    if not found.openai or own_base or quick_gelu(open_clip.get_model_config(arch) or {}):
        return
    if twin in open_clip.list_models():
        raise UserError(
            f"--arch: {source} ({found.layout}) is trained from OpenAI's weights, which need QuickGELU, and {arch} is "
            f"built without it; use --arch {twin}"
        )


def _whole(found: Unpacked, arch: str, source: str) -> nn.Module:
    clip = build_clip(Description(arch, open_clip.get_model_config(arch) or {}, {}))
    tensors = dict(found.tensors)
    if "positional_embedding" in tensors and not hasattr(clip, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for name in ("logit_scale", "logit_bias"):  # written with and without an axis
        if name in tensors and tensors[name].numel() == 1 and isinstance(getattr(clip, name, None), Tensor):
            tensors[name] = tensors[name].reshape(getattr(clip, name).shape)
    _fill(clip, Unpacked(found.layout, True, tensors, found.openai), source, f"whole {arch}")
    return clip


def _encoder_sizes(arch: str) -> dict[str, Tensor]:
    """The architecture's image encoder, without memory for its numbers."""
    config = open_clip.get_model_config(arch) or {}
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"], quick_gelu(config))
    sizes: dict[str, Tensor] = visual.state_dict()
    return sizes


def _check_fit(wanted: Mapping[str, Tensor], found: Unpacked, source: str, what: str) -> None:
    """All tensors and nothing else, or one message with what does not fit."""
    problems = [
        _listed("missing", [name for name in wanted if name not in found.tensors]),
        _listed("unexpected", [name for name in found.tensors if name not in wanted]),
        _listed("of another shape", [
            f"{name} is {list(value.shape)}, not {list(wanted[name].shape)}"
            for name, value in found.tensors.items() if name in wanted and value.shape != wanted[name].shape
        ]),
    ]  # fmt: skip
    if any(problems):
        raise UserError(f"{source}: does not fit the {what}: {'; '.join(filter(None, problems))}{_better(found)}")
    broken = [name for name, value in found.tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise UserError(f"{source}: {_listed('not finite', broken)}")


def _fill(module: nn.Module, found: Unpacked, source: str, what: str) -> None:
    wanted = module.state_dict()
    _check_fit(wanted, found, source, what)
    module.load_state_dict({name: value.to(wanted[name].dtype) for name, value in found.tensors.items()})


def _listed(what: str, names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})" if names else ""


def _better(found: Unpacked) -> str:
    """The architectures that these sizes are."""
    visual = found.tensors
    if found.whole:
        visual = {name.removeprefix("visual."): t for name, t in found.tensors.items() if name.startswith("visual.")}
    names = encoders_like(visual)
    if found.openai:
        names = [name for name in names if quick_gelu(open_clip.get_model_config(name) or {})] or names
    names = sorted(names, key=lambda name: ("openai" not in list_pretrained_tags_by_model(name), len(name)))
    return f". The image encoder has the sizes of --arch {' or '.join(names[:SHOWN])}" if names else ""


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
