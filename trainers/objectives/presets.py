"""The published recipes, as parts of a study file: what the authors trained with, to be used or varied.

A preset is the method, the training attack and the training of a paper, complete where the paper or its official code
says it; it stands with its method. What they leave open, and where we differ on purpose, is said beside the value.

Our own defaults are the fields' defaults: AGFT's settings with a schedule in fractions of the training (2 % warm-up,
then half a cosine), so that it keeps its shape whatever the number of images, GPUs or epochs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from trainers.objectives import METHODS


class Presets(Mapping[str, Mapping[str, Any]]):
    """The presets of all methods by name, those of installed packages included."""

    def _all(self) -> dict[str, Mapping[str, Any]]:
        return {name: preset for method in METHODS.values() for name, preset in method.presets.items()}

    def __getitem__(self, name: str) -> Mapping[str, Any]:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._all())

    def __len__(self) -> int:
        return len(self._all())


PRESETS = Presets()


def with_preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """`given` (the content of a study file) over the preset: its values win, field by field.

    An optimizer of another name replaces the preset's as a whole, because learning rates do not carry over.
    Raises `ValueError` if `given` names another method than the preset's.
    """
    preset = PRESETS[name]
    method = given.get("method")
    named = method.get("name") if isinstance(method, Mapping) else None
    if named is not None and named != preset["method"]["name"]:
        raise ValueError(f"is for the method {preset['method']['name']!r}, and method.name says {named!r}")
    return _over(preset, given)


def _over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in given.items():
        below = base.get(key)
        mixes = isinstance(below, Mapping) and isinstance(value, Mapping) and key not in LENGTHS
        other = mixes and key == "optimizer" and value.get("name", below["name"]) != below["name"]  # type: ignore[index]
        merged[key] = _over(below, value) if mixes and not other else value  # type: ignore[arg-type]
    return merged


LENGTHS = {"logit_scale", "step_size", "warmup"}  # one value each, though written as a mapping
