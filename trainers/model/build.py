"""An open_clip model from its description, without weights."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import Tensor, nn

from trainers.model import bundled as tiny


@dataclass(frozen=True)
class Description:
    """What rebuilds an open_clip model without its weights: names and configurations, as open_clip writes them."""

    arch: str
    model_cfg: dict[str, Any]
    preprocess: dict[str, Any]


def describe(clip: nn.Module) -> Description:
    """The description of a model made by `load_clip` or `build_clip`."""
    description = clip.__dict__.get("description")
    assert isinstance(description, Description), "this model was not made by trainers.model"
    return description


def create(name: str, arch: str, *, model_cfg: dict[str, Any] | None = None, **how: Any) -> nn.Module:
    """open_clip's model of that name, in silence: eval mode, fp32, nothing trainable, its description attached.

    `how`: as open_clip.create_model takes it. The random state is left as it was.
    """
    with _quiet_open_clip(), torch.random.fork_rng(devices=[]):
        clip = open_clip.create_model(name, **how)
    clip.eval().float().requires_grad_(False)
    preprocess: dict[str, Any] = json.loads(json.dumps(clip.visual.preprocess_cfg))
    config = open_clip.get_model_config(name) or {} if model_cfg is None else model_cfg
    clip.__dict__["description"] = Description(arch, config, preprocess)
    return clip


def sizes_of(description: Description) -> dict[str, Tensor]:
    """The architecture's tensors by name, without memory for their numbers."""
    with torch.device("meta"):
        return dict(build_clip(description, device="meta").state_dict())


def build_clip(description: Description, *, device: str = "cpu") -> nn.Module:
    """The architecture with open_clip's random initial weights, whatever they are."""
    with tempfile.TemporaryDirectory() as folder:
        config = {"model_cfg": description.model_cfg, "preprocess_cfg": description.preprocess}
        Path(folder, "open_clip_config.json").write_text(json.dumps(config))
        return create(
            f"local-dir:{folder}", description.arch, model_cfg=description.model_cfg, load_weights=False, device=device
        )


_QUIET = threading.RLock()


@contextlib.contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """open_clip reports to the root logger what we raise, or what is meant (no weights yet).

    One thread at a time: of two that overlap, the second would put back the level that the first has set.
    """
    root = logging.getLogger()
    with _QUIET:
        level = root.level
        try:
            root.setLevel(logging.CRITICAL)
            yield
        finally:
            root.setLevel(level)


def tokenizer_for(clip: nn.Module) -> Callable[[list[str]], Tensor]:
    """The tokenizer that the model was trained with: texts -> int64 [N, context length]."""
    description = describe(clip)
    return _tokenizer(description.arch, json.dumps(description.model_cfg.get("text_cfg", {})))


@functools.lru_cache(maxsize=8)  # to read the vocabulary takes as long as an update of a tiny model
def _tokenizer(arch: str, text_config: str) -> Callable[[list[str]], Tensor]:
    tiny.register()
    text_cfg = json.loads(text_config)
    tokenizer: Callable[[list[str]], Tensor]
    if arch in open_clip.list_models():
        tokenizer = open_clip.get_tokenizer(arch)
    elif "hf_tokenizer_name" in text_cfg:
        tokenizer = open_clip.HFTokenizer(text_cfg["hf_tokenizer_name"], **text_cfg.get("tokenizer_kwargs", {}))
    else:
        tokenizer = open_clip.SimpleTokenizer(context_length=text_cfg.get("context_length", 77))
    return tokenizer
