"""Which models are a plain CLIP, a ViT with a class token and a causal text transformer, as other libraries know it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from open_clip.model import CLIPTextCfg, CLIPVisionCfg
from torch import nn

from trainers.errors import UserError
from trainers.model.build import Description, describe
from trainers.model.weights import load_weights

VISION = ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout")  # in every library
TEXT = ("layers", "width", "heads", "mlp_ratio", "context_length", "vocab_size", "pad_id", "eos_id",
        "hf_model_pretrained", "hf_tokenizer_name", "tokenizer_mode", "tokenizer_kwargs",
        "hf_proj_type", "hf_pooler_type")  # fmt: skip


def load_plain(
    path: Path, library: str, *, text: bool, resnet: bool = False
) -> tuple[nn.Module, Description, CLIPVisionCfg, CLIPTextCfg]:
    """The model in our weights file at `path`, with its towers' settings; `UserError` if `library` has no such model.

    `text`: the text side has to be plain, too. `resnet`: OpenAI's ResNets will do.
    """
    clip = load_weights(path)
    description = describe(clip)
    if odd := _odd(description.model_cfg, text=text, resnet=resnet):
        tower = "a plain ViT or ResNet" if resnet else "a plain ViT"
        raise UserError(
            f"{path}: {library} has CLIP with {tower}{' and text transformer' if text else ''}, and "
            f"{description.arch} is none ({', '.join(odd)}); --layout open-clip takes every architecture"
        )
    sides = (description.model_cfg[side] for side in ("vision_cfg", "text_cfg"))
    vision, words = (kind(**cfg) for kind, cfg in zip((CLIPVisionCfg, CLIPTextCfg), sides, strict=True))
    return clip, description, vision, words


def _odd(model_cfg: Mapping[str, Any], *, text: bool, resnet: bool) -> list[str]:
    """Settings that a plain CLIP does not have, as `vision_cfg.pool_type 'avg'`."""
    odd = [f"{name} {model_cfg[name]!r}" for name in ("custom_text", "multimodal_cfg") if model_cfg.get(name)]
    sides: list[tuple[str, Any, tuple[str, ...]]] = [("vision_cfg", CLIPVisionCfg, VISION)]
    for side, kind, free in [*sides, ("text_cfg", CLIPTextCfg, TEXT)][: 2 if text else 1]:
        usual = {field.name: field.default for field in dataclasses.fields(kind)}
        given = model_cfg.get(side, {})
        odd += [
            f"{side}.{name} {value!r}" for name, value in given.items() if name not in free and value != usual.get(name)
        ]
        if isinstance(given.get("layers"), list) and not resnet:
            odd.append(f"{side}.layers {given['layers']}: a ResNet")
    return odd
