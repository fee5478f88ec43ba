"""Checkpoints as the official codes write them, at toy sizes: names and shapes of OpenAI's `clip` package, by hand."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from open_clip.factory import _MODEL_CONFIGS
from torch import Tensor, nn

from trainers.model.build import Description, build_clip
from trainers.model.weights import save_weights

torch.set_num_threads(1)  # the models are so small that a second thread only waits for the first

EMBED, WIDTH = 32, 64
TEXT = {"context_length": 8, "vocab_size": 100, "width": 64, "heads": 1, "layers": 1}
VIT = {"image_size": 32, "layers": 2, "width": WIDTH, "patch_size": 16}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
CONFIGS: dict[str, dict[str, Any]] = {
    "toy-vit-quickgelu": {"embed_dim": EMBED, "quick_gelu": True, "vision_cfg": VIT, "text_cfg": TEXT},
    "toy-vit": {"embed_dim": EMBED, "vision_cfg": VIT, "text_cfg": TEXT},
    "toy-resnet-quickgelu": {"embed_dim": EMBED, "quick_gelu": True, "vision_cfg": RESNET, "text_cfg": TEXT},
    "toy-vit-deep-quickgelu": {
        "embed_dim": EMBED, "quick_gelu": True, "vision_cfg": {**VIT, "layers": 3}, "text_cfg": TEXT,
    },
}  # fmt: skip


@contextmanager
def toy_architectures(folder: Path) -> Iterator[None]:
    """open_clip knows CONFIGS inside."""
    for name, config in CONFIGS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    try:
        yield
    finally:
        for name in CONFIGS:
            _MODEL_CONFIGS.pop(name, None)


def toy_clip(arch: str, seed: int = 0) -> nn.Module:
    """A random model of one of CONFIGS."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build_clip(Description(arch, open_clip.get_model_config(arch), {}))


def base_weights(folder: Path, arch: str, seed: int = 0) -> Path:
    """A weights file to take the text side from."""
    return save_weights(folder / f"base-{arch}-{seed}.safetensors", toy_clip(arch, seed))


def openai_vit(layers: int = 2, *, seed: int = 1) -> OrderedDict[str, Tensor]:
    """`VisionTransformer(32, 16, 64, layers, 1, 32).state_dict()` of the `clip` package, random."""
    w, tokens = WIDTH, (32 // 16) ** 2 + 1
    shapes = {"class_embedding": (w,), "positional_embedding": (tokens, w), "proj": (w, EMBED),
              "conv1.weight": (w, 3, 16, 16), "ln_pre.weight": (w,), "ln_pre.bias": (w,)}  # fmt: skip
    for number in range(layers):
        block = {"attn.in_proj_weight": (3 * w, w), "attn.in_proj_bias": (3 * w,), "attn.out_proj.weight": (w, w),
                 "attn.out_proj.bias": (w,), "ln_1.weight": (w,), "ln_1.bias": (w,), "mlp.c_fc.weight": (4 * w, w),
                 "mlp.c_fc.bias": (4 * w,), "mlp.c_proj.weight": (w, 4 * w), "mlp.c_proj.bias": (w,),
                 "ln_2.weight": (w,), "ln_2.bias": (w,)}  # fmt: skip
        shapes |= {f"transformer.resblocks.{number}.{name}": shape for name, shape in block.items()}
    shapes |= {"ln_post.weight": (w,), "ln_post.bias": (w,)}
    return _random(shapes, seed)


def openai_resnet(*, seed: int = 1) -> OrderedDict[str, Tensor]:
    """`ModifiedResNet([1, 1, 1, 1], 32, 4, 64, 8).state_dict()` of the `clip` package, random."""
    width, shapes = 8, dict[str, tuple[int, ...]]()

    def norm(name: str, channels: int) -> None:
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{part}"] = (channels,)
        shapes[f"{name}.num_batches_tracked"] = ()

    for number, (inside, out) in enumerate([(3, width // 2), (width // 2, width // 2), (width // 2, width)], 1):
        shapes[f"conv{number}.weight"] = (out, inside, 3, 3)
        norm(f"bn{number}", out)
    inside = width
    for stage in range(4):
        planes, block = width * 2**stage, f"layer{stage + 1}.0"
        for number, (a, b, kernel) in enumerate([(inside, planes, 1), (planes, planes, 3), (planes, 4 * planes, 1)], 1):
            shapes[f"{block}.conv{number}.weight"] = (b, a, kernel, kernel)
            norm(f"{block}.bn{number}", b)
        shapes[f"{block}.downsample.0.weight"] = (4 * planes, inside, 1, 1)
        norm(f"{block}.downsample.1", 4 * planes)
        inside = 4 * planes
    shapes["attnpool.positional_embedding"] = ((64 // 32) ** 2 + 1, inside)
    for part, out in {"k_proj": inside, "q_proj": inside, "v_proj": inside, "c_proj": EMBED}.items():
        shapes |= {f"attnpool.{part}.weight": (out, inside), f"attnpool.{part}.bias": (out,)}
    return _random(shapes, seed)


def _random(shapes: dict[str, tuple[int, ...]], seed: int) -> OrderedDict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors: OrderedDict[str, Tensor] = OrderedDict()
    for name, shape in shapes.items():
        value = torch.rand(shape, generator=generator)
        tensors[name] = (value - 0.5) / value[0].numel() ** 0.5 if value.ndim > 1 else value + 0.1
    for name in tensors:
        if name.endswith("num_batches_tracked"):
            tensors[name] = torch.tensor(7)
    return tensors


def agft_file(path: Path, encoder: OrderedDict[str, Tensor]) -> Path:
    torch.save({"modules": {"clip.visual": encoder}, "params": {}}, path)
    return path


def tecoa_file(path: Path, encoder: OrderedDict[str, Tensor], **changes: Any) -> Path:
    """As TeCoA's code writes it, whose best accuracy is a numpy number; PMG-AFT's and TGA-ZSR's keys are the same."""
    torch.save({
        "epoch": 9, "state_dict": OrderedDict(), "add_prompter": OrderedDict(prompt=torch.zeros(1, 0, 768)),
        "vision_encoder_state_dict": encoder, "best_acc1": np.mean([38.1, 38.3]), "optimizer": {"state": {}}, **changes,
    }, path)  # fmt: skip
    return path
