"""The champion of before again, and MLflow's view of it put right: what needs neither Ray nor torch."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from infra.errors import ServiceError
from infra.services import Services
from infra.tracking.runs import Tracker
from study.cli.here.events import tell
from study.console import Clock
from study.models.approval import approve
from study.models.head import read_head
from study.models.manifest import Manifest
from study.models.registry import RunOf, follow_head
from study.models.rollback import chosen_name, roll_back
from study.session import services_here
from study.store.store import StudyStore
from study.tracking import EXPERIMENT, project_study, study_key

CLOSE_SECONDS = 60.0


def run_of(store: StudyStore, services: Services) -> RunOf:
    """From a manifest of this study to the study's MLflow run, which is made if MLflow does not have it."""
    study = store.load()

    def found(manifest: Manifest) -> str | None:
        if manifest.study_key != study_key(study):
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
    study = store.load()
    services, name = services_here(home, Clock()), study.spec.promote.model_name
    if read_head(services.bucket, name)[0].champion is None:
        print(f"{name} has no champion yet")
        return 0
    head = follow_head(services.bucket, name, services.mlflow_uri, run_of(store, services))
    print(f"MLflow says what HEAD says: {name} champion is version {head.champion}, previous {head.previous or 'none'}")
    return 0


def rollback_here(home: Path, name: str | None, *, to: int | None, reason: str, as_json: bool) -> int:
    """`agft rollback`: the exit code."""
    clock = Clock(aside=as_json)
    services = services_here(home, clock)
    name = chosen_name(services.bucket, name)
    done = roll_back(services.bucket, name, to=to, reason=reason, tracking_uri=services.mlflow_uri)
    if done.moved:
        tell(services, "rolled_back", name, {"from": done.before, "uri": done.uri, "reason": reason}, clock)
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


def approve_here(home: Path, name: str, version: int, *, reason: str, as_json: bool) -> int:
    """`agft approve`: the exit code."""
    clock = Clock(aside=as_json)
    services = services_here(home, clock)
    head, problem = approve(services.bucket, name, version, reason=reason, tracking_uri=services.mlflow_uri)
    tell(services, "promoted", name, {"version": version, "approval": reason}, clock)
    if as_json:
        print(json.dumps({"model": name, **asdict(head), "registry": problem}, indent=2))
    else:
        print(f"approved: {name} version {version} is the champion, generation {head.generation}")
        if problem:
            print("\n".join(registry_lines(problem, f"agft models {name} --repair")))
    return int(bool(problem))


def registry_lines(problem: str, command: str) -> list[str]:
    """What is wrong with MLflow's view of a champion that stands, and what to run."""
    return [f"MLflow was not told: {problem}", f"the champion in S3 stands; when MLflow is back: {command}"]
