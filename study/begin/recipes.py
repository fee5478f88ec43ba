"""The shipped recipes by name, and a recipe made to fit: other weights, data, devices, or the smoke form of it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from infra.process import usable_cores
from study.begin.template import Dumper
from study.plan.estimate import encoder_of, memory_of
from study.spec.document import read_mapping
from trainers.errors import lookup
from trainers.schema.training import TrainConfig

FIRST = "demo"  # what a first study is, where nothing was asked for
ASSUMED_MEMORY = 24e9  # bytes of a GPU that is not here
ROOM = 8 / 9  # of it may be planned: what `memory_of` counts was measured within an eighth
CPU_BATCH = 32

# A CLIP of full size on cores alone: an afternoon's trial of the whole way, not a result.
ON_CORES: dict[str, Any] = {
    "train": {"epochs": 1, "samples_per_epoch": 32},
    "evaluate": {"select": {"attack": {"eps": "1/255", "steps": 2}, "samples": 16},
                 "final": {"attack": {"eps": "1/255", "steps": 4}, "samples": 16}},
    "scheduler": {"name": "none"},
    "goal": {"subject_to": {"clean_accuracy": ">= clip * 0.9"}},
    "budget": {"trials": 2},
    "promote": {"gates": {"sanity": {"samples": 20, "checks": ["deterministic", "input-range"]}}},
}  # fmt: skip

# The smoke form: all that a recipe does, on drawn pictures and as little of it as shows that it runs.
SMOKE: dict[str, Any] = {
    "data": {"train": "tiny-color-shapes", "dev": ["tiny-shapes"], "confirm": ["tiny-colors"],
             "final": ["tiny-letters"]},
    "train": {"epochs": 1, "batch_size": 4, "samples_per_epoch": 8, "precision": "fp32", "warmup": 0.02,
              "official_schedule": None, "teacher_cache": False},
    "evaluate": {"select": {"attack": {"eps": "1/255", "steps": 1}, "samples": 12},
                 "final": {"attack": {"eps": "1/255", "steps": 1}, "samples": 26}},
    "resources": {"workers": 1, "cpus_per_worker": 1, "max_concurrent": 1},
    "scheduler": {"name": "none"},
    "goal": {},
    "budget": {"trials": 1},
}  # fmt: skip


def recipes() -> dict[str, str]:
    """Text by name."""
    folder = files("study") / "recipes"
    found = sorted(folder.iterdir(), key=lambda each: each.name)
    return {Path(each.name).stem: each.read_text(encoding="utf-8") for each in found if each.name.endswith(".yaml")}


def recipe(name: str) -> str:
    """One text; `UserError` with the nearest name."""
    return lookup(recipes(), name, path="--recipe")


def block(text: str, name: str) -> Any:
    """What stands in a top-level block of a file, or None."""
    return read_mapping(text, source="recipe", keys="")[0].get(name)


def with_block(text: str, name: str, value: Any) -> str:
    """The file with another value in a top-level block, at its place or at the end; comments elsewhere stay."""
    line = yaml.dump({name: value}, Dumper=Dumper, default_flow_style=True, width=1000, sort_keys=False)
    line = line.strip()[1:-1] + "\n"
    found = _span(text, name)
    return text[: found.start()] + line + text[found.end() :] if found else text.rstrip("\n") + f"\n{line}"


def with_fields(text: str, name: str, values: Mapping[str, Any]) -> str:
    """The file with other values in some fields of a top-level block, whose other lines and comments stay."""
    found = _span(text, name)
    if found is None or found[0].count("\n") == 1:
        return with_block(text, name, {**(block(text, name) or {}), **values})
    lines = found[0].splitlines(keepends=True)
    for key, value in values.items():
        new = f"  {yaml.dump({key: value}, Dumper=Dumper, default_flow_style=True, width=1000).strip()[1:-1]}\n"
        place = next((number for number, line in enumerate(lines) if line.startswith(f"  {key}:")), None)
        lines[place if place is not None else len(lines) :] = [new] if place is None else [new, *lines[place + 1 :]]
    return text[: found.start()] + "".join(lines) + text[found.end() :]


def _span(text: str, name: str) -> re.Match[str] | None:
    return re.search(rf"^{re.escape(name)}:.*\n(?:[ -].*\n)*", text, flags=re.M)


def smoke(text: str, weights: str | None) -> str:
    """The smoke form of a recipe, with `weights` of its architecture instead of its own where there are any."""
    given = block(text, "train") or {}
    keep = {key: given[key] for key in ("optimizer", "trainable") if key in given}
    for name, value in SMOKE.items():
        if name == "goal" and _is_front(text):
            continue
        text = with_block(text, name, {**value, **keep} if name == "train" else value)
    if (block(text, "sampler") or {}).get("name") == "grid":  # a grid is as long as it is
        text = with_block(text, "sampler", {"name": "random"})
    if "methods" in (read := read_mapping(text, source="recipe", keys="")[0]):
        text = with_block(text, "seeds", read["seeds"][:2])
    if weights is not None:
        text = with_block(text, "model", {**(block(text, "model") or {}), "pretrained": weights})
    return text


def _is_front(text: str) -> bool:
    return bool((block(text, "goal") or {}).get("metrics"))


def for_devices(text: str, gpus: int, memory: float = ASSUMED_MEMORY) -> str:
    """A file whose trials fit GPUs of `memory` bytes each, or without any this machine's cores.

    Batches stay as they are on GPUs, in as many parts as the memory asks for by `agft plan`'s own count; on cores they
    are made small.
    """
    given = {**_preset(text), **(block(text, "train") or {})}
    batch = int(given.get("batch_size", 256))
    train: dict[str, Any] = {"precision": "auto"}
    cores = usable_cores()
    wanted = {"workers": 1, "gpus_per_worker": 1 if gpus else 0}  # a trial a GPU, side by side
    if gpus:
        arch = str((block(text, "model") or {}).get("arch", "ViT-B-32-quickgelu"))
        parts = math.ceil(batch / images_that_fit(arch, TrainConfig.model_validate(given), memory))
        train |= {"accumulation": parts} if parts > 1 else {}
        wanted["cpus_per_worker"] = 4
    else:
        train |= {"batch_size": min(batch, CPU_BATCH)} | ON_CORES["train"]
        if "warmup" not in (block(text, "train") or {}):  # a preset's is longer than all of it
            train |= {"warmup": 0.02, "official_schedule": None}
        wanted["cpus_per_worker"] = cores
        for name in ("evaluate", "scheduler", "budget", "promote"):
            text = with_block(text, name, ON_CORES[name])
        for name, value in (("sampler", {"name": "random"}), ("goal", ON_CORES["goal"])):
            if block(text, name) is not None and not _is_front(text):  # a grid would be longer
                text = with_block(text, name, value)
    return with_block(with_fields(text, "train", train), "resources", wanted)


def _preset(text: str) -> Mapping[str, Any]:
    from trainers.objectives.presets import PRESETS

    name = block(text, "preset")
    found: Mapping[str, Any] = PRESETS[name]["train"] if name in PRESETS else {}
    return found


def images_that_fit(arch: str, train: TrainConfig, memory: float) -> int:
    """At once on a device of so many bytes, in 16 bits; at least 1. `UserError` for an unknown architecture."""
    encoder = encoder_of(arch)
    alone = memory_of(encoder, train, 0, "bf16")
    return max(1, int((ROOM * memory - alone) // (memory_of(encoder, train, 1, "bf16") - alone)))
