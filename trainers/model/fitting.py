"""Do the tensors of a checkpoint fit an architecture? Everything that does not, in one message."""

from __future__ import annotations

import math
from collections.abc import Mapping

import open_clip
import torch
from open_clip.model import _build_vision_tower, convert_to_custom_text_state_dict
from open_clip.pretrained import list_pretrained_tags_by_model
from torch import Tensor, nn

from trainers.errors import UserError
from trainers.model.build import Description, build_clip
from trainers.model.definitions import encoders_like, quick_gelu
from trainers.model.official import Unpacked
from trainers.model.robust import fingerprint

SHOWN = 3  # names of a long list in a message


def check_activation(found: Unpacked, arch: str, base: str | None, source: str) -> None:
    """OpenAI's weights in a model without QuickGELU load without a word and give wrong numbers."""
    twin = f"{arch}-quickgelu"
    own_base = found.layout == "fare" and base not in (None, "openai")  # RobustVLM's code takes any open_clip model
    if not found.openai or own_base or quick_gelu(open_clip.get_model_config(arch) or {}):
        return
    if twin in open_clip.list_models():
        raise UserError(
            f"--arch: {source} ({found.layout}) is trained from OpenAI's weights, which need QuickGELU, and {arch} is "
            f"built without it; use --arch {twin}"
        )


def whole_clip(found: Unpacked, arch: str, source: str) -> nn.Module:
    """The model of a checkpoint that has both encoders; `UserError` with all that does not fit."""
    check_activation(found, arch, None, source)
    clip = build_clip(Description(arch, open_clip.get_model_config(arch) or {}, {}))
    tensors = dict(found.tensors)
    if "positional_embedding" in tensors and not hasattr(clip, "positional_embedding"):
        tensors = convert_to_custom_text_state_dict(tensors)
    for name in ("logit_scale", "logit_bias"):  # written with and without an axis
        if name in tensors and tensors[name].numel() == 1 and isinstance(getattr(clip, name, None), Tensor):
            tensors[name] = tensors[name].reshape(getattr(clip, name).shape)
    fill(clip, Unpacked(found.layout, True, tensors, found.openai), source, f"whole {arch}")
    check_finite(clip, source)
    return clip


def check_finite(clip: nn.Module, source: str) -> None:
    """`UserError` if the model computes anything but finite numbers."""
    if not all(map(math.isfinite, fingerprint(clip))):
        raise UserError(f"{source}: the model of these weights does not compute finite numbers")


def encoder_sizes(arch: str) -> dict[str, Tensor]:
    """The architecture's image encoder, without memory for its numbers."""
    config = open_clip.get_model_config(arch) or {}
    with torch.device("meta"):
        visual = _build_vision_tower(config["embed_dim"], config["vision_cfg"], quick_gelu(config))
    sizes: dict[str, Tensor] = visual.state_dict()
    return sizes


def check_fit(wanted: Mapping[str, Tensor], found: Unpacked, source: str, what: str) -> None:
    """All tensors and nothing else, or one message with what does not fit."""
    problems = [
        _listed("missing", [name for name in wanted if name not in found.tensors]),
        _listed("unexpected", [name for name in found.tensors if name not in wanted]),
        _listed("of another shape", [
            f"{name} is {list(value.shape)}, not {list(wanted[name].shape)}"
            for name, value in found.tensors.items() if name in wanted and value.shape != wanted[name].shape
        ]),
    ]  # fmt: skip
    if any(problems):
        raise UserError(f"{source}: does not fit the {what}: {'; '.join(filter(None, problems))}{_better(found)}")
    broken = [name for name, value in found.tensors.items() if not bool(torch.isfinite(value).all())]
    if broken:
        raise UserError(f"{source}: {_listed('not finite', broken)}")


def fill(module: nn.Module, found: Unpacked, source: str, what: str) -> None:
    wanted = module.state_dict()
    check_fit(wanted, found, source, what)
    module.load_state_dict({name: value.to(wanted[name].dtype) for name, value in found.tensors.items()})


def _listed(what: str, names: list[str]) -> str:
    more = ", ..." if len(names) > SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:SHOWN])}{more})" if names else ""


def _better(found: Unpacked) -> str:
    """The architectures that these sizes are."""
    visual = found.tensors
    if found.whole:
        visual = {name.removeprefix("visual."): t for name, t in found.tensors.items() if name.startswith("visual.")}
    names = encoders_like(visual)
    if found.openai:
        names = [name for name in names if quick_gelu(open_clip.get_model_config(name) or {})] or names
    names = sorted(names, key=lambda name: ("openai" not in list_pretrained_tags_by_model(name), len(name)))
    return f". The image encoder has the sizes of --arch {' or '.join(names[:SHOWN])}" if names else ""
