"""What kind of image encoder an architecture has, from open_clip's model configurations. Imports no torch."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from trainers import tiny

if TYPE_CHECKING:
    from trainers.config import TrainConfig
    from trainers.objectives import Objective

__all__ = ["Tower", "known_architectures", "mismatches", "tower"]

Tower = Literal["vit", "resnet", "other"]


@cache
def _configurations() -> dict[str, dict[str, Any]]:
    """open_clip's own model configurations by name, read without importing it (that takes seconds), and ours."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None, "open_clip is a dependency"
    assert spec.submodule_search_locations is not None, "open_clip is a package"
    folder = Path(spec.submodule_search_locations[0], "model_configs")
    files = [*folder.glob("*.json"), tiny.FOLDER / f"{tiny.ARCH}.json"]
    return {file.stem: json.loads(file.read_text()) for file in files}


def known_architectures() -> list[str]:
    """Every architecture that `model.arch` may name without a checkpoint of its own."""
    return sorted(_configurations())


def tower(arch: str) -> Tower | None:
    """`vit`: open_clip's transformer with a class token; `resnet`: CLIP's ResNets; `other`; None: not known here."""
    config = _configurations().get(arch)
    if config is None:
        return None
    vision = config.get("vision_cfg", {})
    if "timm_model_name" in vision:
        return "other"
    if isinstance(vision.get("layers"), list):
        return "resnet"
    plain = vision.get("pool_type", "tok") == "tok" and not vision.get("attentional_pool")
    return "vit" if plain else "other"


def mismatches(arch: str, method: Objective, train: TrainConfig) -> list[tuple[str, str]]:
    """(path, rule) for what the architecture cannot do. One that is not known here is checked when it is built."""
    kind = tower(arch)
    if kind is None:
        return []
    vision, part = _configurations()[arch].get("vision_cfg", {}), train.trainable.part
    found = {"vit": "a ViT", "resnet": "a ResNet", "other": "another kind of encoder"}[kind]
    problems = []
    if method.teacher_output == "tokens" and kind != "vit":
        problems.append(("method.name", f"needs the patch tokens of a ViT with a class token; {arch} has {found}"))
    if part == "visual_prompt" and kind != "vit":
        rule = f"visual_prompt ends up in a ViT's position embedding, so that weights ship as usual; {arch} has {found}"
        problems.append(("train.trainable.part", rule))
    elif part == "visual_prompt" and 2 * train.trainable.prompt_width > vision.get("image_size", 224):
        rule = f"the input of {arch} is {vision['image_size']} pixels wide; at most {vision['image_size'] // 2}"
        problems.append(("train.trainable.prompt_width", rule))
    blocks = {"vit": vision.get("layers", 12), "resnet": 4, "other": 0}[kind]
    if part in ("first_blocks", "last_blocks") and train.trainable.blocks > blocks:
        rule = f"{arch} has {blocks} blocks" if blocks else f"blocks: only in open_clip's ViTs and ResNets, not {arch}"
        problems.append(("train.trainable.blocks", rule))
    if kind == "resnet" and train.compile and train.activation_checkpointing:
        rule = "a ResNet is either compiled or recomputes its activations; switch one off"
        problems.append(("train.activation_checkpointing", rule))
    return problems
