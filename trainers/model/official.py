"""Checkpoints as the official codes save them: what they hold, read without running anything in them.

layout      file                                                                    code
agft        {"modules": {"clip.visual": encoder}, "params": {}}                     YuboCui/AGFT clip_model.py:102
tecoa       {"vision_encoder_state_dict": encoder, "state_dict": prompts, ...}      cvlab-columbia finetuning.py:525
pmg-aft     the same keys; pixels normalised with ImageNet's mean and deviation     PMG_AFT.py:119-127, 447
tga-zsr     the same keys                                                           TGA-ZSR.py:366
fare        encoder                                                                 RobustVLM's training script:239
state-dict  a whole CLIP, image and text side                                       open_clip, OpenAI

OpenAI's `clip` package, which the first four use, names the encoder's tensors as open_clip does, for ViTs and ResNets.
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from trainers.errors import UserError, lookup

Shape = Literal["modules", "family", "encoder", "model"]


@dataclass(frozen=True)
class Layout:
    """How a code saves its model. `pixels`: mean and deviation, where the code does not use the base model's."""

    shape: Shape
    keys: str
    openai: bool = True
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None


FAMILY = "'vision_encoder_state_dict'"
LAYOUTS: dict[str, Layout] = {
    "agft": Layout("modules", "'modules' with 'clip.visual', and 'params'"),
    "tecoa": Layout("family", FAMILY),
    "pmg-aft": Layout("family", FAMILY, pixels=((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))),
    "tga-zsr": Layout("family", FAMILY),
    "fare": Layout("encoder", "the image encoder's tensors"),
    "state-dict": Layout("model", "the tensors of a whole CLIP", openai=False),
}
AMBIGUOUS = (
    "TeCoA, PMG-AFT and TGA-ZSR save the same keys: read as TeCoA's. A file of PMG-AFT's code needs --layout pmg-aft, "
    "since that code normalises pixels with ImageNet's mean and deviation"
)
WRAPPERS = ("module.", "_orig_mod.", "model.")  # DataParallel, torch.compile, RobustVLM's ClipVisionModel
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # only in OpenAI's own state dicts


@dataclass(frozen=True)
class Unpacked:
    """The tensors of a checkpoint under open_clip's names: of the image encoder, or of the whole model."""

    layout: str
    whole: bool
    tensors: dict[str, Tensor]
    openai: bool
    note: str = ""


class Ignored:
    """Stands in for the numpy scalars in TeCoA's files (their best accuracy); keeps and does nothing."""

    def __init__(self, *_: object) -> None: ...

    def __setstate__(self, _: object) -> None: ...


HARMLESS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar", "numpy.dtype")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The dictionary in a .safetensors or torch file, on the CPU. A file that needs code to be read is refused."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        with torch.serialization.safe_globals([(Ignored, name) for name in HARMLESS]), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about TorchScript, which is answered below
            found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: {_refusal(str(error))}") from None
    except Exception as error:  # on bytes that are no checkpoint, torch raises whatever it stumbles over
        if "TorchScript" in str(error):
            raise UserError(
                f"{path}: a TorchScript archive (OpenAI's own download), which is code; save its tensors first: "
                "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'plain.pt')"
            ) from None
        raise UserError(f"{path}: not a readable checkpoint, perhaps truncated ({_first_line(error)})") from None
    if not isinstance(found, Mapping):
        raise UserError(f"{path}: holds a {type(found).__name__}, not a dictionary of tensors")
    return dict(found)


def _refusal(text: str) -> str:
    """One line instead of torch's advice to load the file anyway."""
    for mark in ("GLOBAL ", "Trying to call reduce for unrecognized function ", "but got "):
        if mark in text:
            name = text.split(mark, 1)[1].split(" ")[0].strip("`'\".")
            return f"refused: reading it would run code ({name}); only tensors and plain values are read"
    return f"not a readable checkpoint, perhaps truncated ({text.splitlines()[-1][:120] if text else 'empty'})"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:160]


def _plain(found: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors among the values, without the prefixes that wrappers put before every name."""
    tensors = {str(name): value.detach() for name, value in found.items() if isinstance(value, Tensor)}
    again = True
    while again and tensors:
        again = False
        for prefix in WRAPPERS:
            if all(name.startswith(prefix) for name in tensors):
                tensors, again = {name.removeprefix(prefix): value for name, value in tensors.items()}, True
    return tensors


def _state_dict(raw: Mapping[str, Any]) -> dict[str, Tensor]:
    """A plain state dict, or the one that a training script wrapped."""
    inner = raw.get("state_dict", raw.get("model"))
    return _plain(inner if isinstance(inner, Mapping) else raw)


def recognise(raw: Mapping[str, Any]) -> str | None:
    """The layout that a checkpoint's keys are those of; None when they are nobody's."""
    shape = _shape(raw)
    return next((name for name, layout in LAYOUTS.items() if layout.shape == shape), None)


def _shape(raw: Mapping[str, Any]) -> Shape | None:
    if isinstance(raw.get("modules"), Mapping) and "clip.visual" in raw["modules"]:
        return "modules"
    if isinstance(raw.get("vision_encoder_state_dict"), Mapping):
        return "family"
    names = _state_dict(raw).keys()
    inside = {name.removeprefix("visual.") for name in names}
    if not inside & {"conv1.weight", "trunk.pos_embed", "trunk.patch_embed.proj.weight", "trunk.stem.0.weight"}:
        return None
    text = any(name.startswith(("visual.", "text.")) for name in names) and any(
        name.endswith(("token_embedding.weight", "text_projection", "text_projection.weight")) for name in names
    )
    return "model" if text else "encoder"


def unpack(raw: Mapping[str, Any], layout: str, source: str) -> Unpacked:
    """The model's tensors. `layout` is a name from LAYOUTS or `auto`; `source` is the file's name for messages."""
    _refuse_prompts(raw, source)
    shape, found = _shape(raw), recognise(raw)
    if shape is None or found is None:
        keys = ", ".join(repr(key) for key in list(raw)[:6]) or "none"
        raise UserError(f"{source}: its keys ({keys}{', ...' if len(raw) > 6 else ''}) are of no known layout: "
                        + "; ".join(f"{name}: {each.keys}" for name, each in LAYOUTS.items()))  # fmt: skip
    name = found if layout == "auto" else layout
    wanted = lookup(LAYOUTS, name, path="--layout")
    if wanted.shape != shape:
        raise UserError(f"{source}: no {name} checkpoint (expected {wanted.keys}); the keys fit --layout {found}")
    if shape == "modules":
        tensors = _plain(raw["modules"]["clip.visual"])
    elif shape == "family":
        tensors = _plain(raw["vision_encoder_state_dict"])
    else:
        tensors = _state_dict(raw)
    if all(key.startswith("visual.") for key in tensors):
        tensors = {key.removeprefix("visual."): value for key, value in tensors.items()}
    numbers = [key for key in OPENAI_NUMBERS if key in tensors]
    tensors = {key: value for key, value in tensors.items() if key not in OPENAI_NUMBERS}
    note = AMBIGUOUS if layout == "auto" and shape == "family" else ""
    return Unpacked(name, shape == "model", tensors, wanted.openai or bool(numbers), note)


def _refuse_prompts(raw: Mapping[str, Any], source: str) -> None:
    """A learned visual prompt is part of such a model; its encoder alone is another one."""
    groups = [raw.get("params"), raw.get("add_prompter"), raw.get("state_dict") if "add_prompter" in raw else None]
    learned = [
        str(name)
        for group in groups
        if isinstance(group, Mapping)
        for name, value in group.items()
        if isinstance(value, Tensor) and value.numel()
    ]
    if learned:
        raise UserError(
            f"{source}: a prompt-tuned model: {', '.join(learned[:4])} are learned visual prompts, which open_clip "
            "cannot hold; only fine-tuned encoders are imported"
        )
