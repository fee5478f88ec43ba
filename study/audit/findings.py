"""What an audit finds: a place where what is stored is not what follows; and its result as a value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from study.console import counted

SHOWN = 200  # characters of a value in a message
ROUNDING = 1e-12  # of a mean: the order of a sum may differ by version and machine, a count may not


@dataclass(frozen=True)
class Finding:
    """One place. `path`: dotted, within the study's row, or the trial's or the promotion's (`promotion`: its name)."""

    path: str
    stored: Any
    derived: Any
    rule: str
    trial: int | None = None
    epoch: int | None = None
    promotion: str | None = None

    @property
    def place(self) -> str:
        """Such as `trial 7, epoch 2: verdict`."""
        parts = [
            f"{name} {value}"
            for name in ("trial", "epoch", "promotion")
            if (value := getattr(self, name)) is not None
        ]  # fmt: skip
        return ": ".join(part for part in (", ".join(parts), self.path) if part)

    def __str__(self) -> str:
        return f"{self.place}: stored {_shown(self.stored)}, derived {_shown(self.derived)} ({self.rule})"


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


@dataclass(frozen=True)
class Audit:
    """What was derived, and the first place that does not follow; None if everything does.

    `counted`: what was derived, by kind: trials, proposals (drawn, neither given nor repeated), epochs, verdicts,
    promotions, gates.
    """

    study: str
    first: Finding | None
    counted: Mapping[str, int]

    @property
    def follows(self) -> bool:
        return self.first is None

    @property
    def line(self) -> str:
        """In one line: `follows (100 trials, 96 proposals, 240 verdicts)`, or the first place that does not."""
        if self.first is not None:
            return f"does not follow: {self.first}"
        kinds = ("trials", "proposals", "verdicts", "promotions")
        told = [(self.counted.get(kind, 0), kind) for kind in kinds]
        return f"follows ({', '.join(counted(n, kind) for n, kind in told if n or kind != 'promotions')})"

    def json(self) -> dict[str, Any]:
        """For machines."""
        first = None if self.first is None else asdict(self.first)
        return {"study": self.study, "follows": self.follows, "first": first, "counted": dict(self.counted)}


def sentence(error: Exception) -> str:
    """What went wrong, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:SHOWN]


def same(one: Any, other: Any) -> bool:
    """Bit for bit, and 1 is not 1.0: as JSON has it."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def difference(stored: Any, derived: Any, path: str) -> tuple[str, Any, Any]:
    """The first dotted path below `path` at which two JSON values differ, with both values there."""
    if isinstance(stored, Mapping) and isinstance(derived, Mapping):
        for key in dict.fromkeys([*derived, *stored]):
            if key not in stored or key not in derived:
                return f"{path}.{key}", stored.get(key), derived.get(key)
            if not same(stored[key], derived[key]):
                return difference(stored[key], derived[key], f"{path}.{key}")
    if isinstance(stored, list) and isinstance(derived, list) and len(stored) == len(derived):
        for place, (one, other) in enumerate(zip(stored, derived, strict=True)):
            if not same(one, other):
                return difference(one, other, f"{path}.{place}")
    return path, stored, derived
