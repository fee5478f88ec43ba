"""The published recipes, as parts of a study file: what the authors trained with, to be used or varied.

A preset is the method, the training attack and the training of a paper, complete where the paper or its official code
says it. What they leave open, and where we differ on purpose, is said beside the value. Imports no torch.

Our own defaults are the fields' defaults: AGFT's settings with a schedule in fractions of the training (2 % warm-up,
then half a cosine), so that it keeps its shape whatever the number of images, GPUs or epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# ImageNet, 1,281,167 images; 1000 warm-up updates; SGD with momentum 0.9 and no weight decay: common to the family.
_SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0}
_PGD2 = {"name": "pgd", "norm": "linf", "eps": "1/255", "step_size": {"of_eps": 1}, "steps": 2, "momentum": 0.0}
_FAMILY = {"epochs": 10, "batch_size": 256, "precision": "fp16", "warmup": {"steps": 1000}}

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Cui et al., CVPR 2026; official code and its README: scale 180, ratio 0.4, lr 4e-4, 2 GPUs x 128.
    "agft-paper": {
        "method": {"name": "agft", "logit_scale": {"of_model": 1.8}, "scale_ratio": 0.4},
        "attack": _PGD2,
        "train": {**_FAMILY, "optimizer": {**_SGD, "lr": 4e-4}, "official_schedule": "timm"},
    },
    # Mao et al., ICLR 2023; its code defaults to lr 1e-7, AGFT's and TGA-ZSR's authors run it with 1e-5.
    "tecoa-paper": {
        "method": {"name": "tecoa", "logit_scale": {"of_model": 1.0}},
        "attack": _PGD2,
        "train": {**_FAMILY, "optimizer": {**_SGD, "lr": 1e-5}, "official_schedule": "open_clip"},
    },
    # Wang et al., CVPR 2024: trained on Tiny-ImageNet; the official code's lr.
    "pmg-aft-paper": {
        "method": {"name": "pmg-aft", "adversarial_weight": 1.0, "clean_weight": 1.0},
        "attack": _PGD2,
        "train": {**_FAMILY, "optimizer": {**_SGD, "lr": 5e-5}, "official_schedule": "open_clip"},
    },
    # Yu et al., NeurIPS 2024: trained on Tiny-ImageNet, batch 128.
    "tga-zsr-paper": {
        "method": {"name": "tga-zsr", "attention_weight": 0.08, "clean_weight": 0.05},
        "attack": _PGD2,
        "train": {**_FAMILY, "batch_size": 128, "optimizer": {**_SGD, "lr": 1e-4}, "official_schedule": "open_clip"},
    },
    # The complementary variant, TPAMI 2026: as TGA-ZSR, its own weights.
    "comp-tga-paper": {
        "method": {"name": "tga-zsr", "complementary": True, "attention_weight": 0.10, "clean_weight": 0.07},
        "attack": _PGD2,
        "train": {**_FAMILY, "batch_size": 128, "optimizer": {**_SGD, "lr": 1e-4}, "official_schedule": "open_clip"},
    },
    # Schlarmann et al., ICML 2024: 20,000 updates of 128 images (2 epochs of ImageNet), fp32, eps 2/255 (or 4/255).
    "fare-paper": {
        "method": {"name": "fare"},
        "attack": {**_PGD2, "eps": "2/255", "step_size": "1/255", "steps": 10, "momentum": 0.9},
        "train": {
            "epochs": 2,
            "batch_size": 128,
            "precision": "fp32",
            "warmup": {"steps": 1400},
            "optimizer": {"name": "adamw", "lr": 1e-5, "momentum": 0.9, "beta2": 0.999, "weight_decay": 1e-4},
            "official_schedule": "open_clip",
        },
    },
}


def with_preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` (the content of a study file) over the preset: its values win, field by field.

    An optimizer of another name replaces the preset's as a whole, because learning rates do not carry over.
    Raises `ValueError` if `given` names another method than the preset's.
    """
    preset = PRESETS[name]
    method = given.get("method")
    named = method.get("name") if isinstance(method, Mapping) else None
    if named is not None and named != preset["method"]["name"]:
        raise ValueError(f"is for the method {preset['method']['name']!r}, and method.name says {named!r}")
    return _over(preset, given)


def _over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in given.items():
        below = base.get(key)
        mixes = isinstance(below, Mapping) and isinstance(value, Mapping) and key not in LENGTHS
        other = mixes and key == "optimizer" and value.get("name", below["name"]) != below["name"]  # type: ignore[index]
        merged[key] = _over(below, value) if mixes and not other else value  # type: ignore[arg-type]
    return merged


LENGTHS = {"logit_scale", "step_size", "warmup"}  # one value each, though written as a mapping
