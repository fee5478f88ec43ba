"""What differs between two study files, in words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["spec_difference"]


def spec_difference(old: str, new: str) -> str:
    """What changed between two canonical specs, one `path: old -> new` a line."""

    def flat(value: Any, prefix: str = "") -> dict[str, Any]:
        if isinstance(value, Mapping) and value:
            return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}{key}.").items()}
        return {prefix.rstrip("."): value}

    before, after = flat(json.loads(old)), flat(json.loads(new))
    return "\n".join(
        f"  {path}: {before.get(path, '(absent)')!r} -> {after.get(path, '(absent)')!r}"
        for path in sorted(before.keys() | after.keys())
        if before.get(path) != after.get(path)
    )
