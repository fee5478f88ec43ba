"""A promotion's records: what is asked, where everything is, what was seen and done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from infra.cluster.cluster import Cluster
from study.models.manifest import Draft, Gate, Look, Manifest, Seeds, Tried
from study.models.registry import RunOf
from study.models.ship import ExtraFiles
from study.results.ranking import Measurement
from study.spec.promotion import GatesConfig
from trainers.schema.records import Weights

GOOD = ("promoted", "held", "kept", "superseded")


@dataclass(frozen=True)
class Order:
    """What a person asks of a promotion, beyond what the study file says. None: as the study says."""

    trial: int | None = None
    candidates: int | None = None
    preference: str | None = None
    gates: GatesConfig | None = None
    seeds: int | None = None
    dry_run: bool = False
    final: bool = False  # in a dry run: look at the final sets all the same
    force: str | None = None  # the reason
    hold: bool = False  # another person moves HEAD

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        gates = None if self.gates is None else self.gates.model_dump(mode="json")
        return {**self.__dict__, "gates": gates}


@dataclass(frozen=True)
class Site:
    """Where everything is. `run_of`: from a manifest to its study's MLflow run.

    `extra_facts`: from a draft of the manifest, and the weights, to the draft with what is measured just before
    shipping; `extra_files`: see `study.models.ship`; `sign`: signs the complete version, before it is the champion.
    """

    bucket: str
    tracking_uri: str
    cluster: Cluster
    say: Callable[[str], None]
    run_of: RunOf | None = None
    extra_files: ExtraFiles | None = None
    extra_facts: Callable[[Draft, Weights], Draft] | None = None
    sign: Callable[[Manifest], None] | None = None


@dataclass
class Promotion:
    """What a promotion saw and did.

    `state`: promoted; held (it would be, and waits for another person's approval); kept (the champion is as good);
    refused (a gate failed); superseded (another promotion was faster, and this candidate is no improvement on it); of a
    dry run, what would have been: `would promote`, `would keep`, `would refuse`. `registry`: what is wrong with
    MLflow's view of it, empty if nothing is.
    """

    model: str
    study: str
    name: str | None = None
    state: str = "started"
    trial: int | None = None
    reason: str = ""
    order: dict[str, Any] = field(default_factory=dict)  # as JSON values
    seen: list[int] = field(default_factory=list)  # the full-length trials of then
    candidates: list[int] = field(default_factory=list)
    standard: str = ""
    gates: tuple[Gate, ...] = ()
    look: Look | None = None  # at the confirm sets, beside the champion
    tried: tuple[Tried, ...] = ()  # other candidates, the best first: gates refused them as well, or before this one
    confirm: dict[str, Measurement] = field(default_factory=dict)
    final: dict[str, Measurement] = field(default_factory=dict)
    seeds: Seeds | None = None
    forced: str | None = None
    version: int | None = None
    champion: int | None = None  # the one that was compared with
    generation: int | None = None
    uri: str = ""
    sha256: str = ""
    final_accesses: int = 0
    registry: str = ""

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        typed = {
            "gates": [gate.record() for gate in self.gates],
            "look": None if self.look is None else self.look.model_dump(mode="json"),
            "tried": [each.model_dump(mode="json") for each in self.tried],
            "seeds": None if self.seeds is None else self.seeds.model_dump(mode="json"),
        }
        return {**self.__dict__, **typed}

    @property
    def exit_code(self) -> int:
        """0: decided; 1: refused, or MLflow does not know yet."""
        return int(self.state in ("refused", "would refuse") or bool(self.registry))
