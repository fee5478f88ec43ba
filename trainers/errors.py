"""Errors that a user can cause in a trial's configuration or data.

ValueError
└── UserError            one clear message, exit code 2, no traceback
    ├── UnknownName      a name that a table does not have
    ├── NotPrepared      a dataset that is known and not here
    └── MissingWeights   weights that cannot be had from where the user said
RuntimeError
└── Interrupted          what a trial needs has been away for too long: no fault of its own
    └── Evicted          its machine is taken away
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Entry = TypeVar("Entry")


class UserError(ValueError):
    """The input is wrong. The message names the path, the value and the rule."""


class UnknownName(UserError):
    """A name that is not in its table; the message lists the nearest names."""


class NotPrepared(UserError):
    """A dataset that is known but cannot be read here; the message has the command that prepares it."""


class MissingWeights(UserError):
    """Model weights that are not where the configuration says."""


class Interrupted(RuntimeError):
    """A service is away, or the trial is to leave while it waits for one; it goes on later from its newest state."""


class Evicted(Interrupted):
    """A process of the trial was told to end, as where a machine is taken away; its state is kept."""


OF_EVERY_TRIAL = (NotPrepared, MissingWeights)  # unless a parameter chooses the data or the weights


def nearest(name: str, known: Iterable[str], *, count: int = 3) -> list[str]:
    """The `count` known names that are most like `name`, best first; empty when none is close."""
    return difflib.get_close_matches(name, list(known), n=count, cutoff=0.5)


def nearest_path(path: str, known: Iterable[str]) -> list[str]:
    """The known dotted path that `path` was meant for, if any: its last name in another block, or one like it."""
    known, leaf = list(known), path.rpartition(".")[2]
    same = [each for each in known if each.rpartition(".")[2] == leaf]
    return sorted(same, key=lambda each: -difflib.SequenceMatcher(None, path, each).ratio())[:1] or nearest(path, known)


def no_such(kind: str, name: object, known: Iterable[str]) -> str:
    """The rule that a name breaks which is not among the `known` ones; the nearest of them first."""
    known = list(known)
    close = nearest(str(name), known)
    return f"no such {kind}; {f'did you mean {close[0]!r}? ' if close else ''}known: {', '.join(known)}"


def lookup(table: Mapping[str, Entry], name: str, *, path: str) -> Entry:
    """`table[name]`, or `UnknownName` that names the configuration path and the known names."""
    if name in table:
        return table[name]
    close = nearest(name, table)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UnknownName(f"{path}: {name!r} is not known; {hint}known: {', '.join(sorted(table))}")
