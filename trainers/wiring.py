"""What a training worker is handed to reach the world. Imports neither torch nor Ray."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.schema.records import Answer, Weights

if TYPE_CHECKING:
    from trainers.teacher.cache import SharedFiles


@dataclass(frozen=True)
class Restored:
    """What an earlier attempt left: the state file, fetched, and where it and the best weights are kept."""

    state: Path
    latest: Weights
    best: Weights | None


@dataclass(frozen=True)
class Wiring:
    """How a trial reaches the world.

    `arrive()`: this process works on the trial now. `claim()`, on rank 0: the number of this group of workers among
    those that Ray started for the trial, with a place of its own. `fetch(group, workdir)`: the state to go on from, or
    None. `keep(group, path, role)`: store a file under its role (`latest`, `best`) and say where.
    `answer(epoch)`: the driver's answer to the report of an epoch. `stored`: the last epoch whose record it has before
    the first report. `shared`: files that the trials of all studies have in common, or None.
    """

    arrive: Callable[[], None]
    claim: Callable[[], int]
    fetch: Callable[[int, Path], Restored | None]
    keep: Callable[[int, Path, str], Weights]
    answer: Callable[[int], Answer]
    provenance: Callable[[], dict[str, Any]]
    stored: int = 0
    shared: SharedFiles | None = None
