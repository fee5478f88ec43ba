"""Which parameters learn: the whole image encoder, its first or last blocks, its norms, or a border of pixels."""

from __future__ import annotations

from torch import nn

from trainers.errors import UserError
from trainers.model.robust import RobustCLIP
from trainers.schema.training import Trainable


def select_trainable(model: RobustCLIP, config: Trainable) -> list[nn.Parameter]:
    """Set `requires_grad` of the model's parameters as `config` says; returns those that learn, in a fixed order.

    `first_blocks` takes the stem (patch embedding, position embedding) with it, `last_blocks` the final norm and the
    projection. A ResNet's blocks are its four stages, its norms the affine parameters of BatchNorm, whose statistics
    never move. `visual_prompt` adds `model.prompt` (Bahng et al. 2022; TeCoA's VPT) and freezes everything else.
    Raises `UserError` where the encoder has no such part.
    """
    model.requires_grad_(False)
    if config.part == "visual_prompt":
        return [model.add_prompt(config.prompt_width)]
    for part in _parts(model.visual, config):
        part.requires_grad_(True)
    return [parameter for parameter in model.visual.parameters() if parameter.requires_grad]


def _parts(visual: nn.Module, config: Trainable) -> list[nn.Module | nn.Parameter]:
    if config.part == "all":
        return [visual]
    if config.part == "layer_norms":
        norms = [module for module in visual.modules() if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)]
        if not norms:
            raise UserError("train.trainable.part: 'layer_norms': this image encoder has no LayerNorm and no BatchNorm")
        return list(norms)
    stem, blocks, head = _anatomy(visual)
    if config.blocks > len(blocks):
        raise UserError(f"train.trainable.blocks: {config.blocks}: this image encoder has {len(blocks)} blocks")
    return [*stem, *blocks[: config.blocks]] if config.part == "first_blocks" else [*blocks[-config.blocks :], *head]


Parts = list[nn.Module | nn.Parameter]


def _anatomy(visual: nn.Module) -> tuple[Parts, Parts, Parts]:
    """Stem, blocks and head of open_clip's ViTs and ResNets."""

    def having(*names: str) -> Parts:
        return [getattr(visual, name) for name in names if getattr(visual, name, None) is not None]

    if hasattr(visual, "transformer") and hasattr(visual.transformer, "resblocks"):
        stem = having("conv1", "class_embedding", "positional_embedding", "ln_pre")
        return stem, list(visual.transformer.resblocks), having("attn_pool", "ln_post", "proj")  # type: ignore[arg-type]
    if hasattr(visual, "layer1") and hasattr(visual, "attnpool"):
        stem = having("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
        return stem, having("layer1", "layer2", "layer3", "layer4"), having("attnpool")
    raise UserError("train.trainable.part: blocks are known for open_clip's ViTs and ResNets, not for this encoder")
