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
from trainers.model.build import Description, build_clip, sizes_of
from trainers.model.definitions import encoders_like, quick_gelu
from trainers.model.official import Unpacked
from trainers.model.robust import fingerprint

SHOWN = 3  # names of a long list in a message


def check_activation(found: Unpacked, arch: str, base: str | None, source: str, *, gelu: bool = False) -> None:
    """Weights in a model of another activation load without a word and give wrong numbers.

    OpenAI's need QuickGELU. Of other plain tensors nobody can tell, so where open_clip has the architecture in both
    forms, whoever names the one without QuickGELU must mean it: `gelu`.
    """
    twin = f"{arch}-quickgelu"
    own_base = found.layout == "fare" and base not in (None, "openai")  # RobustVLM's code takes any open_clip model
    if own_base or quick_gelu(open_clip.get_model_config(arch) or {}) or twin not in open_clip.list_models():
        return
    if not found.openai and not gelu:
        raise UserError(_undecided(arch, twin, source))
    if found.openai:
        raise UserError(
            f"--arch: {source} ({found.layout}) is trained from OpenAI's weights, which need QuickGELU, and {arch} is "
            f"built without it; use --arch {twin}"
        )


def _undecided(arch: str, twin: str, source: str) -> str:
    return (
        f"--arch: {source} does not say whether it was trained with QuickGELU, and {arch} is built without it. What "
        f"comes from OpenAI's weights was: use --arch {twin}. If it was not (LAION's, DataComp's), say so once: "
        f"agft import {source} --arch {arch} --gelu --out weights.safetensors"
    )


def whole_clip(found: Unpacked, arch: str, source: str, *, gelu: bool = False) -> nn.Module:
    """The model of a checkpoint that has both encoders; `UserError` with all that does not fit."""
    check_activation(found, arch, None, source, gelu=gelu)
    description = Description(arch, open_clip.get_model_config(arch) or {}, {})
    sizes = sizes_of(description)
    named = _as_named_in(sizes, found)
    check_fit(sizes, named, source, f"whole {arch}")
    clip = build_clip(description)
    clip.load_state_dict({name: value.to(sizes[name].dtype) for name, value in named.tensors.items()})
    check_finite(clip, source)
    return clip


def check_whole(found: Unpacked, arch: str, source: str) -> None:
    """As `whole_clip`, without the model: whether it could be made, and of finite numbers."""
    check_activation(found, arch, None, source)
    sizes = sizes_of(Description(arch, open_clip.get_model_config(arch) or {}, {}))
    check_fit(sizes, _as_named_in(sizes, found), source, f"whole {arch}")


def _as_named_in(sizes: Mapping[str, Tensor], found: Unpacked) -> Unpacked:
    """The tensors under the names of open_clip's class for this architecture."""
    tensors = dict(found.tensors)
    if "positional_embedding" in tensors and "positional_embedding" not in sizes:
        tensors = convert_to_custom_text_state_dict(tensors)
    for name in ("logit_scale", "logit_bias"):  # written with and without an axis
        if name in tensors and name in sizes and tensors[name].numel() == 1:
            tensors[name] = tensors[name].reshape(sizes[name].shape)
    return Unpacked(found.layout, True, tensors, found.openai)


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
