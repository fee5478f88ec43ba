"""One actor a cluster hands out whole-trial slots, before anything of a trial is built.

Several studies may share a cluster. A trial that waits here costs nothing and is simply QUEUED; a trial that waited
inside Ray Train would time out, count a failure, and in the end fail though nothing is wrong with it. The study that
holds the least goes first, so that a long study cannot starve a short one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import ray

from study.board import NAMESPACE

__all__ = ["ADMISSION", "Ledger", "open_admission"]

ADMISSION = "agft-admission"
SILENCE_SECONDS = 60.0  # a driver that says nothing for so long is gone, with its slots


@dataclass
class Tenant:
    """One driver. `slots` trial keys -> resources held; `wants` when it last asked in vain."""

    heard: float
    slots: dict[str, dict[str, float]] = field(default_factory=dict)
    wants: float | None = None


class Ledger:
    """The rule, free of Ray and of clocks: who may start a trial now."""

    def __init__(self) -> None:
        self.tenants: dict[str, Tenant] = {}

    def heartbeat(self, driver: str, clock: float, slots: dict[str, dict[str, float]] | None = None) -> None:
        """The driver lives; tenants that have been silent for too long are forgotten.

        `slots` are what the driver holds: a restarted ledger learns them again.
        """
        tenant = self.tenants.setdefault(driver, Tenant(heard=clock))
        tenant.heard = clock
        tenant.slots.update(slots or {})
        for name in [n for n, tenant in self.tenants.items() if clock - tenant.heard > SILENCE_SECONDS]:
            del self.tenants[name]

    def ask(self, driver: str, trial: str, need: dict[str, float], total: dict[str, float], clock: float) -> bool:
        """Whether `driver` may start `trial` now. Asking again for a trial that holds a slot is a yes."""
        self.heartbeat(driver, clock)
        tenant = self.tenants[driver]
        if trial in tenant.slots:
            return True
        used = dict.fromkeys(need, 0.0)
        for other in self.tenants.values():
            for slot in other.slots.values():
                for name in need:
                    used[name] += slot.get(name, 0.0)
        fits = all(used[name] + need[name] <= total.get(name, 0.0) + 1e-9 for name in need)
        hungrier = any(
            name != driver and other.wants is not None and clock - other.wants < 5.0
            and len(other.slots) < len(tenant.slots)
            for name, other in self.tenants.items()
        )  # fmt: skip
        if fits and not hungrier:
            tenant.slots[trial], tenant.wants = dict(need), None
            return True
        tenant.wants = clock
        return False

    def give_back(self, driver: str, trial: str) -> None:
        """The trial has ended."""
        if driver in self.tenants:
            self.tenants[driver].slots.pop(trial, None)

    def leave(self, driver: str) -> None:
        """The driver has ended, with all its trials."""
        self.tenants.pop(driver, None)


class Admission:
    """`Ledger` as an actor, on one clock."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def heartbeat(self, driver: str, slots: dict[str, dict[str, float]]) -> None:
        self.ledger.heartbeat(driver, time.monotonic(), slots)

    def ask(self, driver: str, trial: str, need: dict[str, float], total: dict[str, float]) -> bool:
        return self.ledger.ask(driver, trial, need, total, time.monotonic())

    def give_back(self, driver: str, trial: str) -> None:
        self.ledger.give_back(driver, trial)

    def leave(self, driver: str) -> None:
        self.ledger.leave(driver)


def open_admission() -> Any:
    """The cluster's admission actor, started by whoever comes first; it outlives its first driver."""
    actor = ray.remote(num_cpus=0)(Admission)
    return actor.options(
        name=ADMISSION,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
        max_restarts=-1,
        max_task_retries=-1,
    ).remote()
