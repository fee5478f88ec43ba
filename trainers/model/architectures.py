"""What kind of image encoder an architecture has, from open_clip's model configurations. Imports no torch."""

from __future__ import annotations

import importlib.util
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

from trainers.model import bundled as tiny

Tower = Literal["vit", "resnet", "other"]


@cache
def configurations() -> dict[str, dict[str, Any]]:
    """open_clip's own model configurations by name, read without importing it (that takes seconds), and ours."""
    spec = importlib.util.find_spec("open_clip")
    assert spec is not None, "open_clip is a dependency"
    assert spec.submodule_search_locations is not None, "open_clip is a package"
    folder = Path(spec.submodule_search_locations[0], "model_configs")
    files = [*folder.glob("*.json"), tiny.FOLDER / f"{tiny.ARCH}.json"]
    return {file.stem: json.loads(file.read_text()) for file in files}


def known_architectures() -> list[str]:
    """Every architecture that `model.arch` may name without a checkpoint of its own."""
    return sorted(configurations())


def tower(arch: str) -> Tower | None:
    """`vit`: open_clip's transformer with a class token; `resnet`: CLIP's ResNets; `other`; None: not known here."""
    config = configurations().get(arch)
    if config is None:
        return None
    vision = config.get("vision_cfg", {})
    if "timm_model_name" in vision:
        return "other"
    if isinstance(vision.get("layers"), list):
        return "resnet"
    plain = vision.get("pool_type", "tok") == "tok" and not vision.get("attentional_pool")
    return "vit" if plain else "other"
