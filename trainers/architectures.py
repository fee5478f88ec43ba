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
    if kind in (None, "vit"):
        return []
    found = {"resnet": "a ResNet", "other": "another kind of encoder"}[kind or "other"]
    problems = []
    if method.teacher_output == "tokens":
        rule = f"needs the patch tokens of a ViT with a class token; {arch} has {found}"
        problems.append(("method.name", rule))
    if train.trainable.part == "visual_prompt":
        rule = f"visual_prompt ends up in a ViT's position embedding, so that weights ship as usual; {arch} has {found}"
        problems.append(("train.trainable.part", rule))
    if kind == "other" and train.trainable.part in ("first_blocks", "last_blocks"):
        problems.append(
            ("train.trainable.part", f"blocks are known for open_clip's ViTs and ResNets; {arch} has {found}")
        )
    return problems
