"""One actor a cluster hands out whole-trial slots, before anything of a trial is built.

Several studies may share a cluster. A trial that waits here costs nothing and is simply QUEUED; a trial that waited
inside Ray Train would time out, count a failure, and in the end fail though nothing is wrong with it.

Who goes first: the higher priority; then the study that holds the smaller share of what it needs most of (dominant
resource fairness, Ghodsi et al., NSDI 2011); then who has waited longest. A trial that does not fit yet is passed by
smaller ones for a minute; after that, and by lower priorities at once, what it needs is kept for it.

What runs on the cluster without a slot (an evaluation, the measuring of a new study's unmodified model, somebody
else's job) is seen by what is free: a trial that were let in beside it would wait inside Ray Train after all.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from infra.cluster.cluster import node_capacities, total_of
from study.driver.board import NAMESPACE

# What trials hold and wait for, told to Ray's autoscaler, so that nodes come for those that wait.
#
# A trial that waits for admission asks Ray for nothing, so an autoscaler would never hear of it. With
# `AGFT_AUTOSCALE=1` in the head's environment, the admission actor tells it; on a cluster of fixed size, Ray would
# only warn about it.

VARIABLE = "AGFT_AUTOSCALE"
PERIOD_SECONDS = 5.0
log = logging.getLogger("agft")

Bundles = Sequence[Mapping[str, float]]


def keep_telling(demand: Callable[[], Bundles]) -> None:
    """Tell the autoscaler of `demand()` for as long as this process lives, whenever it has changed.

    What is told holds until something else is told, so the last change is always told, also that nothing is wanted.
    """
    if os.environ.get(VARIABLE) == "1":
        threading.Thread(target=_tell, args=(demand,), daemon=True, name="agft-scaling").start()


def _tell(demand: Callable[[], Bundles]) -> None:
    from ray.autoscaler.sdk import request_resources

    told: list[dict[str, float]] | None = None
    while True:
        wanted = sorted((dict(bundle) for bundle in demand()), key=str)
        if wanted != told:
            try:
                request_resources(bundles=wanted)
                told = wanted
            except Exception as error:  # a head that restarts; told again in a moment
                log.warning("the autoscaler was not told what trials need: %s", error)
        time.sleep(PERIOD_SECONDS)


INTERFACE = 1  # of `Admission`, raised with its methods: the actor of an older release outlives an upgrade
ADMISSION = f"agft-admission-{INTERFACE}"
SILENCE_SECONDS = 60.0  # a driver that says nothing for so long is gone, with its slots
WANT_SECONDS = 10.0  # a driver that waits asks many times in this; one that does not is not waiting any more
RESERVE_SECONDS = 60.0  # so long may smaller trials pass one that does not fit
LEARN_SECONDS = 15.0  # a restarted ledger first hears from every driver what it holds
NODES_SECONDS = 2.0  # how old the list of nodes may be
EPSILON = 1e-9
ON_HEAD = {"node:__internal_head__": 0.001}  # the one node that a cluster cannot lose

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Slot:
    """What a trial holds: `need` in all, in equal parts by `workers`, each part on one node."""

    need: Resources
    workers: int = 1

    def parts(self) -> list[dict[str, float]]:
        return [{name: amount / self.workers for name, amount in self.need.items()}] * self.workers


@dataclass
class Want:
    """A trial that waits."""

    slot: Slot
    priority: int
    since: float
    asked: float


@dataclass
class Tenant:
    """One driver."""

    heard: float
    slots: dict[str, Slot] = field(default_factory=dict)
    want: Want | None = None


class Ledger:
    """The rule, free of Ray and of clocks: who may start a trial now. Nothing is granted before `opens`."""

    def __init__(self, opens: float = float("-inf")) -> None:
        self.tenants: dict[str, Tenant] = {}
        self.opens = opens

    def heartbeat(self, driver: str, clock: float, slots: Mapping[str, Slot] | None = None) -> None:
        """The driver lives; tenants that have been silent for too long are forgotten.

        `slots` are what the driver holds: a restarted ledger learns them again.
        """
        tenant = self.tenants.setdefault(driver, Tenant(heard=clock))
        tenant.heard = clock
        for trial, slot in (slots or {}).items():
            tenant.slots.setdefault(trial, slot)
        for name in [n for n, tenant in self.tenants.items() if clock - tenant.heard > SILENCE_SECONDS]:
            del self.tenants[name]

    def ask(
        self, driver: str, trial: str, slot: Slot, nodes: Sequence[Resources], clock: float, priority: int = 0,
        is_free: Callable[[Resources], bool] = lambda need: True,
    ) -> bool:  # fmt: skip
        """Whether `driver` may start `trial` now. Asking again for a trial that holds a slot is a yes.

        `is_free(need)`: whether nobody else has so much of the cluster that `need` would have to wait.
        """
        self.heartbeat(driver, clock)
        tenant = self.tenants[driver]
        if trial in tenant.slots:
            return True
        waiting = tenant.want is not None and clock - tenant.want.asked < WANT_SECONDS
        since = tenant.want.since if tenant.want is not None and waiting else clock
        tenant.want = Want(slot, priority, since, clock)
        if clock < self.opens or not self._turn(driver, nodes, clock) or not is_free(slot.need):
            return False
        tenant.slots[trial], tenant.want = slot, None
        return True

    def keep(
        self, driver: str, name: str, slot: Slot, nodes: Sequence[Resources], clock: float, priority: int = 0
    ) -> bool:
        """Whether `driver` may start its next trial in the slot that it holds. If not, somebody goes before it, and it
        is to give the slot back."""
        self.heartbeat(driver, clock, {name: slot})
        if clock < self.opens:
            return True
        held = self.tenants[driver].slots
        own = held.pop(name)
        kept = self.ask(driver, name, own, nodes, clock, priority)
        held[name] = own
        return kept

    def others_wait(self, driver: str, clock: float) -> bool:
        """Whether a trial of anybody else waits for a slot."""
        wants = (tenant.want for name, tenant in self.tenants.items() if name != driver)
        return any(want is not None and clock - want.asked < WANT_SECONDS for want in wants)

    def _turn(self, driver: str, nodes: Sequence[Resources], clock: float) -> bool:
        """Whether `driver`'s want fits beside what is held and what goes before it."""
        own = self.tenants[driver].want
        assert own is not None
        held = [slot for tenant in self.tenants.values() for slot in tenant.slots.values()]
        if not fits(nodes, [*held, own.slot]):
            return False
        for _, want in self._line(nodes, clock):
            if want is own:
                return True
            if fits(nodes, [*held, want.slot]):
                held.append(want.slot)  # its driver takes it at its next question
            elif self._keeps_room(want, own, nodes, clock) and _in_the_way(own.slot, want.slot, held, nodes):
                return False
            if not fits(nodes, [*held, own.slot]):
                return False
        raise AssertionError("a want stands in its own line")

    def _keeps_room(self, first: Want, behind: Want, nodes: Sequence[Resources], clock: float) -> bool:
        """Whether `first`, which does not fit now, may hold up `behind`; never one that cannot fit at all."""
        urgent = first.priority > behind.priority or clock - first.since > RESERVE_SECONDS
        return urgent and fits(nodes, [first.slot])

    def _line(self, nodes: Sequence[Resources], clock: float) -> list[tuple[str, Want]]:
        """All that wait, the first first."""
        total = total_of(nodes)

        def key(item: tuple[str, Want]) -> tuple[float, float, float, str]:
            name, want = item
            return -want.priority, _share(self.tenants[name], total), want.since, name

        live = [
            (name, tenant.want)
            for name, tenant in self.tenants.items()
            if tenant.want is not None and clock - tenant.want.asked < WANT_SECONDS
        ]
        return sorted(live, key=key)

    def give_back(self, driver: str, trial: str) -> None:
        """The trial has ended."""
        if driver in self.tenants:
            self.tenants[driver].slots.pop(trial, None)

    def leave(self, driver: str) -> None:
        """The driver has ended, with all its trials."""
        self.tenants.pop(driver, None)

    def demand(self, clock: float) -> list[dict[str, float]]:
        """What trials hold and wait for, part by part, of drivers that live. May be asked from another thread."""
        slots: list[Slot] = []
        for tenant in list(self.tenants.values()):
            if clock - tenant.heard > SILENCE_SECONDS:
                continue
            slots += list(tenant.slots.values())
            want = tenant.want
            if want is not None and clock - want.asked < WANT_SECONDS:
                slots.append(want.slot)
        return [part for slot in slots for part in slot.parts()]


def is_free(need: Resources) -> bool:
    """Whether the cluster has so much unused now. What measures a model, and other people's jobs, ask for no slot."""
    free = ray.available_resources()
    return all(free.get(name, 0.0) + EPSILON >= amount for name, amount in need.items())


def fits(nodes: Sequence[Resources], slots: Sequence[Slot]) -> bool:
    """Whether all slots have room at once, each part on one node: the largest part first, into the fullest node.

    It may say no where a cleverer order would find room, never yes where there is none. Equal parts are exact.
    """
    free = [dict(node) for node in nodes]
    parts = [part for slot in slots for part in slot.parts()]
    for part in sorted(parts, key=lambda part: sorted(part.values(), reverse=True), reverse=True):
        room = [node for node in free if all(node.get(name, 0.0) + EPSILON >= amount for name, amount in part.items())]
        if not room:
            return False
        node = min(room, key=lambda node: sum(node.get(name, 0.0) for name in part))
        for name, amount in part.items():
            node[name] = node.get(name, 0.0) - amount
    return True


def whole_nodes(part: Resources, workers: int, nodes: Sequence[Resources]) -> dict[str, float]:
    """What `workers` parts hold that have their nodes to themselves; what they need, where that can never be."""
    plain = {name: amount * workers for name, amount in part.items()}
    roomy = max(nodes, key=lambda node: [node.get(name, 0.0) for name in part], default={})
    beside = min([workers, *(int(roomy.get(name, 0.0) / amount + EPSILON) for name, amount in part.items() if amount)])
    if beside == 0:
        return plain
    whole = {name: roomy[name] / beside * workers for name in ("CPU", "GPU") if roomy.get(name)}
    return whole if fits(nodes, [Slot(whole, workers)]) else plain


def _in_the_way(own: Slot, first: Slot, held: Sequence[Slot], nodes: Sequence[Resources]) -> bool:
    """Whether `own` takes of what `first` is short of, or of what it will need."""
    total, used = total_of(nodes), total_of([slot.need for slot in held])

    def over(name: str, more: float) -> bool:
        return used.get(name, 0.0) + first.need.get(name, 0.0) + more > total.get(name, 0.0) + EPSILON

    short = [name for name in first.need if over(name, 0.0)] or list(first.need)  # or enough, but in pieces
    return any(amount > 0 and (name in short or over(name, amount)) for name, amount in own.need.items())


def _share(tenant: Tenant, total: Resources) -> float:
    held = total_of([slot.need for slot in tenant.slots.values()])
    return max((amount / total[name] for name, amount in held.items() if total.get(name, 0.0) > 0), default=0.0)


class Admission:
    """`Ledger` as an actor, on one clock, with the nodes that live now."""

    def __init__(self, again: bool = False) -> None:
        self.ledger = Ledger(time.monotonic() + LEARN_SECONDS if again else float("-inf"))
        self.nodes: list[dict[str, float]] = []
        self.looked = float("-inf")
        keep_telling(lambda: self.ledger.demand(time.monotonic()))

    def heartbeat(self, driver: str, slots: Mapping[str, Resources], workers: int = 1) -> None:
        """`slots`: what the whole trials hold."""
        self.ledger.heartbeat(driver, time.monotonic(), {trial: Slot(need, workers) for trial, need in slots.items()})

    def ask(
        self, driver: str, trial: str, need: Resources, total: Resources, priority: int = 0, workers: int = 1
    ) -> bool:
        """`total` is what the driver's cluster had at its start; nodes join and leave, so the live ones count."""
        clock = time.monotonic()
        return self.ledger.ask(driver, trial, Slot(need, workers), self._look(total, clock), clock, priority, is_free)

    def keep(
        self, driver: str, name: str, need: Resources, total: Resources, priority: int = 0, workers: int = 1
    ) -> bool:
        """As `ask`, for another trial in a slot that is held already."""
        clock = time.monotonic()
        return self.ledger.keep(driver, name, Slot(need, workers), self._look(total, clock), clock, priority)

    def _look(self, total: Resources, clock: float) -> list[dict[str, float]]:
        """The nodes, as of a moment ago."""
        if clock - self.looked > NODES_SECONDS:
            self.nodes, self.looked = node_capacities() or [dict(total)], clock
        return self.nodes

    def others_wait(self, driver: str) -> bool:
        return self.ledger.others_wait(driver, time.monotonic())

    def give_back(self, driver: str, trial: str) -> None:
        self.ledger.give_back(driver, trial)

    def leave(self, driver: str) -> None:
        self.ledger.leave(driver)


def open_admission(again: bool = False) -> Any:
    """The cluster's admission actor, started by whoever comes first; it outlives its first driver. `again`: one has
    died, so that a new one first has to learn who holds what.

    Drivers start it again, not Ray: of what can be started again, Ray's memory monitor kills first.
    """
    actor = ray.remote(num_cpus=0)(Admission)
    return actor.options(
        name=ADMISSION,
        resources=ON_HEAD,
        namespace=NAMESPACE,
        get_if_exists=True,
        lifetime="detached",
    ).remote(again)
