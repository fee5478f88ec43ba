"""A CLIP as two ONNX graphs, one a tower, with everything between pixels and unit embeddings inside."""

from __future__ import annotations

import importlib.util
import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trainers.arithmetic import exact_math
from trainers.errors import UserError
from trainers.model.exports.plain import load_plain
from trainers.model.robust import RobustCLIP, fingerprint_inputs
from trainers.model.weights import write

OPSET = 17  # the first with LayerNormalization as one operator
IMAGE, TEXT, CARD = "image_encoder.onnx", "text_encoder.onnx", "model.json"
MOST_BYTES = 2_000_000_000  # of one protobuf file
TOLERANCE = 1e-4  # of logits


class _Tower(nn.Module):
    """Inputs -> unit embeddings, fp32 [n, D]."""

    def __init__(self, owner: nn.Module, embed: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.owner, self.embed = owner, embed

    def forward(self, inputs: Tensor) -> Tensor:
        return nn.functional.normalize(self.embed(inputs), dim=-1)


class _PlainPool(nn.Module):
    """A ResNet's attention pool, fp32 [n, C, H, W] -> [n, D], by plain products.

    In the graph of open_clip's own the tracer keeps the number of images as a constant.
    """

    def __init__(self, pool: nn.Module) -> None:
        super().__init__()
        self.pool = pool

    def forward(self, x: Tensor) -> Tensor:
        pool: Any = self.pool
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + pool.positional_embedding

        def heads(values: Tensor) -> Tensor:
            return values.unflatten(2, (pool.num_heads, -1)).transpose(1, 2)

        query, key, value = heads(pool.q_proj(tokens[:, :1])), heads(pool.k_proj(tokens)), heads(pool.v_proj(tokens))
        weights = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1)
        pooled: Tensor = pool.c_proj((weights @ value).transpose(1, 2).flatten(1))
        return pooled


def export_onnx(weights_path: Path, out: Path) -> tuple[Path, float | None]:
    """Write `out` and give it back, with the largest difference of a logit between onnxruntime and open_clip.

    `image_encoder.onnx`: `pixels` fp32 [n, 3, S, S] in [0, 1], normalised inside; `text_encoder.onnx`: `tokens` int64
    [n, context length]; both: `embedding` fp32 [n, D] of unit norm. `model.json`: the logit scale, how a picture is
    resized and the opset. Logits are logit_scale * image @ text.T. Where onnxruntime is not installed nothing is
    compared (None). `UserError` without the package onnx, for what is no plain CLIP, a tower above 2 GB, other logits.
    """
    if importlib.util.find_spec("onnx") is None:
        raise UserError("--layout onnx needs the package onnx: pip install 'agft-study[onnx]'")
    clip, description, _, _ = load_plain(weights_path, "the ONNX export", text=True, resnet=True)
    model, (pixels, tokens) = RobustCLIP(clip).requires_grad_(False), fingerprint_inputs(clip)
    images = (pixels * model.std + model.mean).clamp(0, 1)

    def image_side(x: Tensor) -> Tensor:
        embedded: Tensor = model.visual((x - model.mean) / model.std)
        return embedded

    towers = {
        IMAGE: (_Tower(model, image_side), "pixels", images),
        TEXT: (_Tower(clip, clip.encode_text), "tokens", tokens),  # type: ignore[arg-type]
    }
    with torch.no_grad(), exact_math():
        embeddings = [tower(inputs) for tower, _, inputs in towers.values()]
    if (pool := getattr(model.visual, "attnpool", None)) is not None:
        model.visual.attnpool = _PlainPool(pool)  # the model is our own, and goes with this call
    out.mkdir(parents=True, exist_ok=True)
    for file, (tower, name, inputs) in towers.items():
        _export(tower, name, inputs, out / file)
    card = {
        "arch": description.arch, "opset": OPSET, "logit_scale": model.logit_scale, "image_size": model.image_size,
        "context_length": int(tokens.shape[1]), "resize_mode": description.preprocess.get("resize_mode", "shortest"),
        "interpolation": description.preprocess.get("interpolation", "bicubic"),
    }  # fmt: skip
    write(out / CARD, json.dumps(card, indent=2).encode())
    if importlib.util.find_spec("onnxruntime") is None:
        return out, None
    found = [torch.from_numpy(run(out / file, name, inputs)) for file, (_, name, inputs) in towers.items()]
    ours, theirs = (model.logit_scale * image @ text.T for image, text in (embeddings, found))
    worst = float((ours - theirs).abs().max())
    if worst > TOLERANCE * max(1.0, model.logit_scale):
        raise UserError(f"{out}: onnxruntime's logits differ from open_clip's by {worst:.2g}; do not use these files")
    return out, worst


def _export(tower: nn.Module, name: str, inputs: Tensor, path: Path) -> None:
    """Write one graph."""
    size = sum(value.numel() * value.element_size() for value in tower.parameters())
    if size > MOST_BYTES:
        raise UserError(f"{path}: a tower of {size / 1e9:.1f} GB does not fit into one ONNX file (2 GB)")
    fast = torch.backends.mha.get_fastpath_enabled()
    with warnings.catch_warnings(), torch.no_grad(), exact_math():
        warnings.simplefilter("ignore")  # the exporter that needs no further package is called legacy
        try:
            torch.backends.mha.set_fastpath_enabled(False)  # one operator that ONNX does not have
            torch.onnx.export(
                tower, (inputs,), str(path), dynamo=False, opset_version=OPSET, input_names=[name],
                output_names=["embedding"], dynamic_axes={name: {0: "n"}, "embedding": {0: "n"}},
            )  # fmt: skip
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


def run(path: Path, name: str, inputs: Tensor) -> Any:
    """A graph's embeddings, as onnxruntime computes them on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {name: inputs.numpy()})[0]
