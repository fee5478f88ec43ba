"""The tensors of Hugging Face's CLIPModel under open_clip's names, and back; those of its vision model alone as well.

Its attention has q, k and v apart, and its projections are `nn.Linear`, the transpose of OpenAI's matrices.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

MARK = "vision_model.embeddings.class_embedding"
BLOCK = {
    "self_attn.out_proj": "attn.out_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}  # fmt: skip
TOWERS: dict[str, tuple[str, dict[str, str]]] = {  # its prefix -> ours, and the names outside the blocks
    "vision_model.": ("visual.", {
        "embeddings.class_embedding": "class_embedding", "embeddings.patch_embedding.weight": "conv1.weight",
        "embeddings.position_embedding.weight": "positional_embedding", "pre_layrnorm.weight": "ln_pre.weight",
        "pre_layrnorm.bias": "ln_pre.bias", "post_layernorm.weight": "ln_post.weight",
        "post_layernorm.bias": "ln_post.bias",
    }),
    "text_model.": ("", {
        "embeddings.token_embedding.weight": "token_embedding.weight",
        "embeddings.position_embedding.weight": "positional_embedding", "final_layer_norm.weight": "ln_final.weight",
        "final_layer_norm.bias": "ln_final.bias",
    }),
}  # fmt: skip
MATRICES = {"visual_projection.weight": "visual.proj", "text_projection.weight": "text_projection"}
Q_K_V = ("q_proj", "k_proj", "v_proj")


def convert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` under open_clip's names; what Hugging Face's CLIP does not have keeps its own."""
    found = {
        MATRICES.get(name, name): value.T.contiguous() if name in MATRICES and value.ndim == 2 else value
        for name, value in tensors.items()
        if not name.startswith(tuple(TOWERS))
    }
    for theirs, (ours, outside) in TOWERS.items():
        inside = {name.removeprefix(theirs): value for name, value in tensors.items() if name.startswith(theirs)}
        for name, value in inside.items():
            _, layers, rest = name.partition("encoder.layers.")
            number, _, part = rest.partition(".")
            module, _, leaf = part.rpartition(".")
            block = f"{ours}transformer.resblocks.{number}."
            if layers and module in BLOCK:
                found[f"{block}{BLOCK[module]}.{leaf}"] = value
            elif layers and module == "self_attn.q_proj":
                parts = [inside.get(f"encoder.layers.{number}.self_attn.{each}.{leaf}") for each in Q_K_V]
                if all(each is not None and each.ndim == value.ndim for each in parts):
                    found[f"{block}attn.in_proj_{leaf}"] = torch.cat([each for each in parts if each is not None])
            elif not (layers and module.removeprefix("self_attn.") in Q_K_V):
                found[f"{ours}{outside[name]}" if name in outside else f"{theirs}{name}"] = value
    return found


def unconvert(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of `convert` for a plain CLIP: `tensors` of open_clip under Hugging Face's names."""
    names = {
        f"{ours}{name}": f"{theirs}{old}" for theirs, (ours, found) in TOWERS.items() for old, name in found.items()
    }
    matrices, modules = ({new: old for old, new in table.items()} for table in (MATRICES, BLOCK))
    towers = {f"{ours}transformer.resblocks.": f"{theirs}encoder.layers." for theirs, (ours, _) in TOWERS.items()}
    found: dict[str, Tensor] = {}
    for name, value in tensors.items():
        blocks = next((prefix for prefix in towers if name.startswith(prefix)), None)
        if name in matrices:
            found[matrices[name]] = value.T.contiguous()
        elif blocks is None:
            found[names.get(name, name)] = value
        else:
            number, _, part = name.removeprefix(blocks).partition(".")
            block, (module, _, leaf) = f"{towers[blocks]}{number}.", part.rpartition(".")
            if module == "attn":  # in_proj_weight, in_proj_bias
                for each, rows in zip(Q_K_V, value.chunk(3), strict=True):
                    found[f"{block}self_attn.{each}.{leaf.removeprefix('in_proj_')}"] = rows.contiguous()
            else:
                found[f"{block}{modules[module]}.{leaf}"] = value
    return found
