"""One `agft promote` or `agft rollback` on this machine: services, Ray, the decision, and what a person sees of it."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.cluster import Cluster
from infra.errors import ServiceError
from infra.services import Services
from infra.tracking import Tracker
from study.champion import read_head
from study.console import Clock, wide_console
from study.model_card import card_files
from study.projection import EXPERIMENT, project_study, study_key
from study.promote import promote
from study.promote_registry import RunOf, follow_head
from study.promote_show import registry_lines, show_promotion
from study.promotion import Order, Promotion, Site
from study.rollback import chosen_name, roll_back
from study.session import cluster_here, services_here
from study.store import StudyStore
from study.version_facts import version_facts

__all__ = ["promote_here", "promote_on", "repair_here", "rollback_here"]

CLOSE_SECONDS = 60.0


class _Aside(Clock):
    """The same lines on standard error, when standard output is for a machine."""

    def __call__(self, text: str) -> None:
        seconds = int(time.monotonic() - self.started)
        print(f"[{seconds // 60:3d}:{seconds % 60:02d}] {text}", file=sys.stderr, flush=True)


def promote_here(store: StudyStore, home: Path, order: Order, *, as_json: bool) -> int:
    """`agft promote`: decide about the champion; the exit code."""
    clock = _Aside() if as_json else Clock()
    services = services_here(home, clock)
    try:
        with cluster_here(clock) as cluster:
            promotion = promote_on(store, services, cluster, clock, order)
    except KeyboardInterrupt:
        clock("stopped; nothing was moved, what is measured is kept. Go on with the same command")
        return 1
    if as_json:
        print(json.dumps(promotion.record(), indent=2))
    else:
        show_promotion(wide_console(), promotion, services)
    return promotion.exit_code


def promote_on(
    store: StudyStore, services: Services, cluster: Cluster, clock: Clock, order: Order | None = None
) -> Promotion:
    """Promote on a cluster that is connected."""
    site = Site(
        services.bucket, services.mlflow_uri, cluster, clock, run_of(store, services), card_files, version_facts
    )
    return promote(store, order or Order(), site)


def run_of(store: StudyStore, services: Services) -> RunOf:
    """From a manifest of this study to the study's MLflow run, which is made if MLflow does not have it."""
    study = store.load()

    def found(manifest: Mapping[str, Any]) -> str | None:
        if manifest.get("study_key", study_key(study)) != study_key(study):
            return None
        tracker = Tracker(services.mlflow_uri, EXPERIMENT)
        try:
            project_study(tracker, study, reopen=False)
            tracker.flush(CLOSE_SECONDS)
            run_id = tracker.run_id(study_key(study))
        finally:
            tracker.close(1.0)
        if run_id is None:
            raise ServiceError(f"MLflow at {services.mlflow_uri} does not answer")
        return run_id

    return found


def repair_here(store: StudyStore, home: Path) -> int:
    """`agft promote STUDY --repair`: MLflow's registry in line with HEAD; nothing is decided."""
    clock = Clock()
    study = store.load()
    services, name = services_here(home, clock), study.spec.promote.model_name
    if read_head(services.bucket, name)[0].champion is None:
        print(f"{name} has no champion yet")
        return 0
    head = follow_head(services.bucket, name, services.mlflow_uri, run_of(store, services))
    print(f"MLflow says what HEAD says: {name} champion is version {head.champion}, previous {head.previous or 'none'}")
    return 0


def rollback_here(home: Path, name: str | None, *, to: int | None, reason: str, as_json: bool) -> int:
    """`agft rollback`: the exit code."""
    clock = _Aside() if as_json else Clock()
    services = services_here(home, clock)
    name = chosen_name(services.bucket, name)
    done = roll_back(services.bucket, name, to=to, reason=reason, tracking_uri=services.mlflow_uri)
    if as_json:
        print(json.dumps({**vars(done), "moved": done.moved}, indent=2))
        return done.exit_code
    if done.moved:
        print(f"rolled back: {name} version {done.champion} is the champion again, generation {done.generation}; "
              f"version {done.before} is what it was before")  # fmt: skip
    else:
        print(f"{name} version {done.champion} is the champion already; nothing was moved")
    print(f"champion: {done.uri}/")
    if done.registry:
        print("\n".join(registry_lines(done.registry, f"agft rollback {name} --to {done.champion}")))
    return done.exit_code
