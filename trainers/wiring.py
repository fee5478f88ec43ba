"""What a training worker is handed to reach the world. Imports neither torch nor Ray."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainers.schema.records import Answer, At, Report, Sign, Weights

if TYPE_CHECKING:
    from trainers.teacher.cache import SharedFiles


@dataclass(frozen=True)
class Restored:
    """What an earlier attempt left: the state file, fetched, and where it and the best weights are kept."""

    state: Path
    latest: Weights
    best: Weights | None  # none before the first epoch has ended


@dataclass(frozen=True)
class Wiring:
    """How a trial reaches the world.

    `arrive()`: this process works on the trial now. `claim()`, on rank 0: the number of this group of workers among
    those that Ray started for the trial, with a place of its own. `fetch(group, workdir)`: the state to go on from, or
    None. `keep(group, path, role, at, stored)`: store a file under its role (`latest`, `best`) and say where; `stored`
    is the last epoch that the driver has. `patiently(step)`: do a step that writes to the disk, again while that is
    full; it, `claim`, `fetch` and `keep` raise `Interrupted` when that or storage is away for too long. `alive(sign)`:
    how far the trial is inside an epoch, every few seconds. `asked()`, on rank 0, many times inside an epoch: whether
    the driver wants the trial to leave there, as it does when the study is paused. `report(told)`, on rank 0: the
    driver's answer. `stored`: the last epoch whose record it has before the first report. `shared`: files that the
    trials of all studies have in common, or None.
    """

    arrive: Callable[[], None]
    claim: Callable[[], int]
    fetch: Callable[[int, Path], Restored | None]
    keep: Callable[[int, Path, str, At, int], Weights]
    report: Callable[[Report], Answer]
    provenance: Callable[[], dict[str, Any]]
    alive: Callable[[Sign], None] = lambda sign: None
    asked: Callable[[], bool] = lambda: False
    patiently: Callable[[Callable[[], Any]], Any] = operator.call
    stored: int = 0
    shared: SharedFiles | None = None
