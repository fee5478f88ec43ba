"""CLIP's image encoder as `timm.create_model("local-dir:...", pretrained=True)` loads it."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from trainers.model.exports.plain import load_plain
from trainers.model.weights import save_plain, write

NAMES = {  # open_clip's part of a name -> timm's, one after the other
    "transformer.resblocks.": "blocks.", "conv1.": "patch_embed.proj.", "positional_embedding": "pos_embed",
    "class_embedding": "cls_token", "ln_pre.": "norm_pre.", "ln_post.": "norm.", "ln_1.": "norm1.", "ln_2.": "norm2.",
    "attn.in_proj_": "attn.qkv.", "attn.out_proj.": "attn.proj.", "mlp.c_fc.": "mlp.fc1.", "mlp.c_proj.": "mlp.fc2.",
}  # fmt: skip


def export_timm(weights_path: Path, out: Path) -> Path:
    """Write the folder of a timm ViT whose head is CLIP's projection: pixels in, CLIP's image embedding out.

    `UserError` for what is no ViT with a class token. The text side and the logit scale stay behind.
    """
    clip, description, vision, _ = load_plain(weights_path, "timm", text=False)
    tensors = {}
    for name, value in clip.visual.state_dict().items():  # type: ignore[union-attr]
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        tensors[name] = value
    head = tensors.pop("proj").T.contiguous()
    tensors |= {"head.weight": head, "head.bias": torch.zeros(len(head))}
    tensors["cls_token"], tensors["pos_embed"] = tensors["cls_token"][None, None], tensors["pos_embed"][None]
    preprocess = description.preprocess
    activation = "_quickgelu" if description.model_cfg.get("quick_gelu") else ""
    config = {
        "architecture": f"vit_base_patch16_clip{activation}_224",  # of timm's; `model_args` says what differs
        "num_classes": len(head),
        "num_features": vision.width,
        "global_pool": "token",
        "model_args": {
            "img_size": vision.image_size, "patch_size": vision.patch_size, "embed_dim": vision.width,
            "depth": vision.layers, "num_heads": vision.width // vision.head_width, "mlp_ratio": vision.mlp_ratio,
        },
        "pretrained_cfg": {
            "num_classes": len(head), "input_size": [3, vision.image_size, vision.image_size], "crop_pct": 1.0,
            "crop_mode": "squash" if preprocess.get("resize_mode") == "squash" else "center",
            "interpolation": preprocess.get("interpolation", "bicubic"), "mean": list(preprocess["mean"]),
            "std": list(preprocess["std"]), "fixed_input_size": True, "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
    }  # fmt: skip
    save_plain(out / "model.safetensors", tensors)
    write(out / "config.json", json.dumps(config, indent=2).encode())
    return out
