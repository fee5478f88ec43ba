"""Which architecture a model configuration, or a set of weights, is: names, and what differs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import open_clip
from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

from trainers.errors import UserError

# What says where a tower's first weights came from or how text is cut, but not which function the model is.
IGNORED = ("timm_model_pretrained", "hf_model_pretrained", "hf_tokenizer_name", "tokenizer_kwargs", "tokenizer_mode")


def quick_gelu(model_cfg: Mapping[str, Any]) -> bool:
    """Is the model built with OpenAI's activation?"""
    return bool(model_cfg.get("quick_gelu", False))


def _definition(model_cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Every field that decides the function, by dotted name, open_clip's defaults filled in."""
    found: dict[str, Any] = {"embed_dim": model_cfg.get("embed_dim"), "quick_gelu": quick_gelu(model_cfg)}
    for tower, fields in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        defaults = {field.name: field.default for field in dataclasses.fields(fields)}
        for name, value in {**defaults, **model_cfg.get(tower, {})}.items():
            if name not in IGNORED:
                found[f"{tower}.{name}"] = list(value) if isinstance(value, tuple) else value
    return found


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted name, value in `one`, value in `other`) of what makes two configurations different functions."""
    first, second = _definition(one), _definition(other)
    names = [*first, *(name for name in second if name not in first)]
    return [(name, first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)]


def check_same_model(arch: str, model_cfg: Mapping[str, Any], source: str) -> None:
    """Refuse an `arch` that is another model of open_clip's than the one at `source`; a name of one's own passes."""
    named = open_clip.get_model_config(arch)
    different = differences(model_cfg, named) if named else []
    if different:
        right = [name for name in open_clip.list_models() if not differences(model_cfg, _config(name))]
        what = ", ".join(f"{name} {found!r}, not {value!r}" for name, found, value in different[:3])
        use = f"use arch: {right[0]}" if right else "give it a name that is not one of open_clip's"
        raise UserError(f"model.arch: {source} is no {arch} ({what}); {use}")


def _config(arch: str) -> dict[str, Any]:
    config: dict[str, Any] = open_clip.get_model_config(arch)
    return config


def encoders_like(tensors: Mapping[str, Tensor]) -> list[str]:
    """Architectures of open_clip's whose image encoder has the sizes of these tensors (ViTs, CLIP's ResNets)."""
    sizes = _sizes(tensors)
    if sizes is None:
        return []
    names = []
    for name in open_clip.list_models():
        config = _config(name)
        vision = CLIPVisionCfg(**{k: v for k, v in config["vision_cfg"].items() if k in _VISION_FIELDS})
        if vision.timm_model_name is None and sizes == {
            "embed_dim": config["embed_dim"],
            "layers": list(vision.layers) if isinstance(vision.layers, (list, tuple)) else vision.layers,
            "width": vision.width,
            "image_size": vision.image_size,
            "patch_size": None if isinstance(vision.layers, (list, tuple)) else vision.patch_size,
        }:
            names.append(name)
    return names


_VISION_FIELDS = {field.name for field in dataclasses.fields(CLIPVisionCfg)}


def _sizes(tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    if {"conv1.weight", "positional_embedding", "proj"} <= set(tensors):
        width, _, _, patch = tensors["conv1.weight"].shape
        grid = round((tensors["positional_embedding"].shape[0] - 1) ** 0.5)
        layers = sum(name.endswith(".attn.in_proj_weight") for name in tensors)
        return {"embed_dim": tensors["proj"].shape[1], "layers": layers, "width": width, "image_size": patch * grid,
                "patch_size": patch}  # fmt: skip
    if {"conv3.weight", "attnpool.positional_embedding", "attnpool.c_proj.weight"} <= set(tensors):
        grid = round((tensors["attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        blocks = [len({n.split(".")[1] for n in tensors if n.startswith(f"layer{stage}.")}) for stage in range(1, 5)]
        return {"embed_dim": tensors["attnpool.c_proj.weight"].shape[0], "layers": blocks, "patch_size": None,
                "width": tensors["conv3.weight"].shape[0], "image_size": 32 * grid}  # fmt: skip
    return None


def plain_openai_encoder(model_cfg: Mapping[str, Any]) -> bool:
    """Would OpenAI's `clip` package build this very image encoder from its weights?"""
    vision = model_cfg["vision_cfg"]
    if not set(vision) <= _VISION_FIELDS or not quick_gelu(model_cfg):
        return False
    shape = {name: vision[name] for name in ("layers", "width", "patch_size", "image_size") if name in vision}
    return CLIPVisionCfg(**vision) == CLIPVisionCfg(**shape)
