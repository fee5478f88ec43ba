"""Checkpoints as the official codes save them: what they hold, read without running anything in them.

layout      file                                                                    code
agft        {"modules": {"clip.visual": encoder}, "params": {}}                     YuboCui/AGFT clip_model.py:102
tecoa       {"vision_encoder_state_dict": encoder, "state_dict": prompts, ...}      cvlab-columbia finetuning.py:525
pmg-aft     the same keys; pixels normalised with ImageNet's mean and deviation     PMG_AFT.py:119-127, 447
tga-zsr     the same keys                                                           TGA-ZSR.py:366
fare        encoder                                                                 RobustVLM's training script:239
state-dict  a whole CLIP, image and text side                                       open_clip, OpenAI, Hugging Face

OpenAI's `clip` package, which the first four use, names the encoder's tensors as open_clip does, for ViTs and ResNets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from trainers.errors import UserError, lookup
from trainers.model import hugging_face

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
INNER = ("state_dict", "model_state_dict", "model", "module")  # where training scripts keep the model that is meant
DEPTH = 3  # of mappings in mappings
VISUAL = "visual."
ENCODERS = ("conv1.weight", "trunk.pos_embed", "trunk.patch_embed.proj.weight", "trunk.stem.0.weight")
TEXT = ("token_embedding.weight", "text_projection", "text_projection.weight")
UNUSED = ("position_ids", "attn_mask")  # buffers that follow from the configuration
SHOWN = 6  # names of a long list in a message
OPENAI_NUMBERS = ("input_resolution", "context_length", "vocab_size")  # only in OpenAI's own state dicts


@dataclass(frozen=True)
class Unpacked:
    """The tensors of a checkpoint under open_clip's names: of the image encoder, or of the whole model."""

    layout: str
    whole: bool
    tensors: dict[str, Tensor]
    openai: bool
    note: str = ""


@dataclass(frozen=True)
class Found:
    """One model's tensors in a checkpoint, without what wrappers put before their names; what was left beside them."""

    tensors: dict[str, Tensor]
    left: tuple[str, ...] = ()


def find_model(raw: Mapping[str, Any], source: str) -> Found:
    """The tensors of the one CLIP, or CLIP's image encoder, in nested mappings; none if there is none.

    Raises `UserError` where several lie side by side and no name says which one is meant.
    """
    groups = dict(_groups(raw, ()))
    path = next((path for path in groups if not path or path[-1] in INNER), None) if groups else None
    if not groups:
        return Found({})
    if path is None and len(groups) > 1:
        names = ", ".join(".".join(each) for each in groups)
        raise UserError(f"{source}: holds several models ({names}): save the one that you mean alone")
    path = next(iter(groups)) if path is None else path
    tensors = groups[path]
    prefixes = _prefixes(tensors)
    if len(prefixes) > 1:
        names = ", ".join(f"{each}*" for each in prefixes)
        raise UserError(f"{source}: holds several models ({names}): save the one that you mean alone")
    [prefix] = prefixes
    kept = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    kept = {name: value for name, value in kept.items() if not any(_ends(name, end) for end in UNUSED)}
    left = [
        *(str(key) for key in raw if path and str(key) != path[0]),
        *(name for name in tensors if not name.startswith(prefix)),
    ]
    return Found(hugging_face.convert(kept) if hugging_face.MARK in kept else kept, tuple(left))


def _groups(raw: Mapping[str, Any], path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], dict[str, Tensor]]]:
    """(keys on the way, tensors) of every mapping that has a model's tensors."""
    tensors = {str(name): value.detach() for name, value in raw.items() if isinstance(value, Tensor)}
    if _prefixes(tensors):
        yield path, tensors
    elif len(path) < DEPTH:
        for key, inner in raw.items():
            if isinstance(inner, Mapping):
                yield from _groups(inner, (*path, str(key)))


def _prefixes(names: Iterable[str]) -> list[str]:
    """What stands before the names of each model: of a whole CLIP, or of an image encoder where there is none."""
    names = list(names)
    whole = {name[: name.index(f".{VISUAL}") + 1] if not name.startswith(VISUAL) else ""
             for name in names if name.startswith(VISUAL) or f".{VISUAL}" in name}  # fmt: skip
    whole |= {name.removesuffix(hugging_face.MARK) for name in names if _ends(name, hugging_face.MARK)}
    found = whole or {name.removesuffix(end) for name in names for end in ENCODERS if _ends(name, end)}
    return sorted(each for each in found if not any(other != each and each.startswith(other) for other in found))


def _ends(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _shape(raw: Mapping[str, Any], source: str = "") -> Shape | None:
    if isinstance(raw.get("modules"), Mapping) and "clip.visual" in raw["modules"]:
        return "modules"
    if isinstance(raw.get("vision_encoder_state_dict"), Mapping):
        return "family"
    names = find_model(raw, source).tensors
    if not names:
        return None
    return "model" if any(name.startswith("text.") or name in TEXT for name in names) else "encoder"


def unpack(raw: Mapping[str, Any], layout: str, source: str) -> Unpacked:
    """The model's tensors. `layout` is a name from LAYOUTS or `auto`; `source` is the file's name for messages."""
    if not raw:
        raise UserError(f"{source}: empty: a dictionary that holds nothing")
    _refuse_prompts(raw, source)
    shape = _shape(raw, source)
    if shape is None:
        raise UserError(f"{source}: {_unknown(raw)}")
    likely = next(name for name, each in LAYOUTS.items() if each.shape == shape)
    name = likely if layout == "auto" else layout
    wanted = lookup(LAYOUTS, name, path="--layout")
    if wanted.shape != shape:
        raise UserError(f"{source}: no {name} checkpoint (expected {wanted.keys}); the keys fit --layout {likely}")
    inner = {"modules": lambda: raw["modules"]["clip.visual"], "family": lambda: raw["vision_encoder_state_dict"]}
    chosen = inner[shape]() if shape in inner else raw
    found = find_model(chosen if isinstance(chosen, Mapping) else {}, source)
    tensors = found.tensors
    if all(key.startswith(VISUAL) for key in tensors):
        tensors = {key.removeprefix(VISUAL): value for key, value in tensors.items()}
    numbers = [key for key in OPENAI_NUMBERS if key in tensors]
    tensors = {key: value for key, value in tensors.items() if key not in OPENAI_NUMBERS}
    notes = [AMBIGUOUS] * (layout == "auto" and shape == "family")
    if found.left:
        more = f" and {len(found.left) - SHOWN} more" if len(found.left) > SHOWN else ""
        notes.append(f"left over, and not used: {', '.join(found.left[:SHOWN])}{more}")
    return Unpacked(name, shape == "model", tensors, wanted.openai or bool(numbers), "; ".join(notes))


def _unknown(raw: Mapping[str, Any]) -> str:
    """What is in a checkpoint without a model that is known."""
    keys = f"{', '.join(repr(key) for key in list(raw)[:SHOWN])}{', ...' if len(raw) > SHOWN else ''}"
    tensors = list(_tensors(raw))
    if not tensors:
        return f"empty: no tensor under its keys ({keys})"
    if any(name.startswith(tuple(hugging_face.TOWERS)) for name in tensors):
        return (f"of Hugging Face's layout, but not of its CLIPModel or CLIPVisionModel ({keys}): name open_clip's own "
                "weights of this model, hf-hub:ORG/NAME")  # fmt: skip
    return f"its keys ({keys}) are of no known layout: " + "; ".join(f"{n}: {each.keys}" for n, each in LAYOUTS.items())


def _tensors(raw: Mapping[Any, Any], depth: int = 0) -> Iterator[str]:
    """Names of all tensors in mappings of mappings."""
    for key, value in raw.items():
        if isinstance(value, Tensor):
            yield str(key)
        elif isinstance(value, Mapping) and depth < 3 * DEPTH:
            yield from _tensors(value, depth + 1)


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
