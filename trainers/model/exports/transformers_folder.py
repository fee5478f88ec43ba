"""A CLIP as `transformers` loads it: CLIPModel's folder, and CLIPVisionModel's, which LLaVA-like models take.

Only files are written: weights in safetensors, configurations, the tokenizer. The package itself is not needed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from trainers.errors import UserError
from trainers.model.exports.plain import load_plain
from trainers.model.hugging_face import unconvert
from trainers.model.weights import save_plain, write

EPS = 1e-5  # of every LayerNorm of open_clip's
BOS, EOS = "<|startoftext|>", "<|endoftext|>"
RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers
VISION = "vision"


def export_transformers(weights_path: Path, out: Path) -> Path:
    """Write `out` for CLIPModel, CLIPProcessor and CLIPTokenizer, and `out/vision` for CLIPVisionModel.

    `UserError` for what transformers' CLIP cannot be: ResNets, other poolings, layers or text towers.
    """
    clip, description, vision, text = load_plain(weights_path, "transformers", text=True)
    activation = "quick_gelu" if description.model_cfg.get("quick_gelu") else "gelu"
    embed = description.model_cfg["embed_dim"]
    common = {"hidden_act": activation, "layer_norm_eps": EPS, "projection_dim": embed, "attention_dropout": 0.0}
    image: dict[str, Any] = {
        "model_type": "clip_vision_model", "hidden_size": vision.width,
        "intermediate_size": int(vision.width * vision.mlp_ratio), "num_hidden_layers": vision.layers,
        "num_attention_heads": vision.width // vision.head_width, "num_channels": 3, "image_size": vision.image_size,
        "patch_size": vision.patch_size, **common,
    }  # fmt: skip
    last = text.vocab_size - 1  # the end of a text: the largest number there is, where open_clip and transformers pool
    words: dict[str, Any] = {
        "model_type": "clip_text_model", "vocab_size": text.vocab_size, "hidden_size": text.width,
        "intermediate_size": int(text.width * text.mlp_ratio), "num_hidden_layers": text.layers,
        "num_attention_heads": text.heads, "max_position_embeddings": text.context_length, "bos_token_id": last - 1,
        "eos_token_id": last, "pad_token_id": last, **common,
    }  # fmt: skip
    scale = float(clip.logit_scale.detach())  # type: ignore[operator]
    whole = {"model_type": "clip", "architectures": ["CLIPModel"], "projection_dim": embed, "vision_config": image,
             "text_config": words, "logit_scale_init_value": scale}  # fmt: skip
    shown = _preprocessor(description.preprocess, vision.image_size, str(weights_path))
    tensors = unconvert(clip.state_dict())
    _folder(out, tensors, whole, shown)
    only = {name: value for name, value in tensors.items() if name.startswith("vision_model.")}
    _folder(out / VISION, only, {**image, "architectures": ["CLIPVisionModel"]}, shown)
    if text.vocab_size == len(_tokenizer().encoder) and not text.hf_tokenizer_name:
        _write_tokenizer(out, text.context_length)
    return out


def _folder(out: Path, tensors: dict[str, Tensor], config: dict[str, Any], preprocessor: dict[str, Any]) -> None:
    save_plain(out / "model.safetensors", tensors)
    _json(out / "config.json", {**config, "dtype": "float32"})
    _json(out / "preprocessor_config.json", preprocessor)


def _json(path: Path, content: object) -> None:
    write(path, json.dumps(content, indent=2).encode())


def _preprocessor(preprocess: dict[str, Any], size: int, source: str) -> dict[str, Any]:
    """CLIPImageProcessor's settings; `UserError` where it cannot do what open_clip does before this model."""
    mode, interpolation = preprocess.get("resize_mode", "shortest"), preprocess.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or interpolation not in RESAMPLE:
        raise UserError(f"{source}: transformers' CLIPImageProcessor has no resize {mode!r} with {interpolation!r}")
    square = {"height": size, "width": size}
    return {
        "image_processor_type": "CLIPImageProcessor", "do_resize": True, "resample": RESAMPLE[interpolation],
        "size": {"shortest_edge": size} if mode == "shortest" else square, "do_center_crop": mode == "shortest",
        "crop_size": square, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
        "image_mean": list(preprocess["mean"]), "image_std": list(preprocess["std"]), "do_convert_rgb": True,
    }  # fmt: skip


def _tokenizer() -> SimpleTokenizer:
    return open_clip.SimpleTokenizer()


def _write_tokenizer(out: Path, length: int) -> None:
    """CLIP's byte-pair encoding, which open_clip carries, in the two files of CLIPTokenizer."""
    tokenizer = _tokenizer()
    vocabulary = {**tokenizer.encoder}
    for theirs, token in zip(list(vocabulary)[-2:], (BOS, EOS), strict=True):
        vocabulary[token] = vocabulary.pop(theirs)
    merges = [" ".join(pair) for pair, _ in sorted(tokenizer.bpe_ranks.items(), key=lambda item: item[1])]
    write(out / "vocab.json", json.dumps(vocabulary).encode())
    write(out / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]).encode())
    names = {"bos_token": BOS, "eos_token": EOS, "unk_token": EOS, "pad_token": EOS}
    _json(out / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **names})
