"""Study files that tests start from: valid, on the tiny CLIP. A test says only what is different about its own.

A block of the file is one entry here, and `blocks` replaces or adds whole ones: `minimal(name="other", seed="3")`.
"""

from __future__ import annotations

from typing import Any

import yaml

from study.spec.config import StudyConfig

# As little as a study file may hold: for what is read, planned, stored and refused.
MINIMAL = {
    "name": "small",
    "method": "{name: agft}",
    "model": "{arch: tiny-clip, pretrained: bundled}",
    "data": "{train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}",
    "search": "{method.scale_ratio: {low: 0.2, high: 1.0}}",
    "budget": "{trials: 4}",
}
# For trials that really train: seconds an epoch on one core, and none is stopped early.
TRAINED = {
    **MINIMAL,
    "method": "{name: agft, logit_scale: {of_model: 1.0}}",
    "train": "{epochs: 2, batch_size: 64, samples_per_epoch: 256}",
    "evaluate": "{select: {attack: {eps: [4/255], steps: 2}, samples: 24}}",
    "search": "{method.scale_ratio: {low: 0.5, high: 1.0}}",
    "scheduler": "{name: none}",
    "resources": "{workers: 1, cpus_per_worker: 1}",
}


def minimal(**blocks: str) -> str:
    return text_of({**MINIMAL, **blocks})


def trained(**blocks: str) -> str:
    return text_of({**TRAINED, **blocks})


def text_of(blocks: dict[str, str]) -> str:
    """The file's text, one line a block where the block is one line."""
    return "".join(f"{name}:{'' if value.startswith(chr(10)) else ' '}{value}\n" for name, value in blocks.items())


def minimal_study(**blocks: Any) -> StudyConfig:
    """The record itself, its blocks given as values."""
    return StudyConfig.model_validate({**yaml.safe_load(minimal()), **blocks})
