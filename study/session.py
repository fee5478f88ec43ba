"""One command's session on this machine: services, Ray, the study, and what a person sees of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra import stack
from infra.cluster import Cluster, connect, disconnect
from infra.services import Services, services_from_environment
from study.config import StudyConfig
from study.console import Clock, percent, trials_table, wide_console
from study.database import database_url
from study.log_copy import copied_output
from study.notify import Notifier
from study.prior import check_prior
from study.results import best_trial
from study.runner import Outcome, run_study
from study.store import StudyStore

__all__ = ["cluster_here", "resume_here", "run_here", "services_here"]

CLOSE_SECONDS = 60.0


def services_here(home: Path, clock: Clock) -> Services:
    """The services that the environment names, or the embedded ones, started if need be."""
    services = services_from_environment(os.environ)
    if services is None:
        clock("starting the embedded services (S3, MLflow) ...")
        services = stack.up(home, kept_up=True)
        clock(f"MLflow UI: {services.mlflow_uri}  (user {services.mlflow_username}, password in {home}/secrets.json)")
    os.environ.update(services.environment())  # Ray's processes inherit it; nothing is sent through Ray
    return services


@contextmanager
def cluster_here(clock: Clock) -> Iterator[Cluster]:
    """Ray, connected to or started, and let go again by whoever was first."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield connect()
        return
    clock("connecting to Ray ..." if os.environ.get("RAY_ADDRESS") else "starting Ray on this machine ...")
    cluster = connect()
    try:
        yield cluster
    finally:
        disconnect()


def run_here(spec: StudyConfig, home: Path, *, then_promote: bool) -> int:
    """Run a study (or go on with it) and show it; the exit code."""
    store = StudyStore(database_url(home), spec.name)
    check_prior(store.url, spec)
    store.create(spec)  # refuses another spec before anything is started
    return resume_here(store, home, then_promote=then_promote)


def resume_here(store: StudyStore, home: Path, *, then_promote: bool) -> int:
    """Drive a stored study from where it is, and show it; exit code 0 when it has ended, 1 when it can go on."""
    clock = Clock()
    store.refuse_if_driven_here()
    spec = store.load().spec
    clock(f"study {spec.name}: {spec.budget.trials} trials; Ctrl-C pauses it")
    Notifier.from_environment(os.environ)  # a wrong address is answered before anything is started
    services = services_here(home, clock)
    promotion = None
    kept_output = copied_output(home / "logs", bucket=services.bucket, store=store)
    with kept_output, cluster_here(clock) as cluster:
        outcome = run_study(
            spec, database=store.url, cluster=cluster, bucket=services.bucket, tracking_uri=services.mlflow_uri,
            say=clock, report=home / "reports" / spec.name,
        )  # fmt: skip
        _show(store, home, outcome, here=services.home is not None)
        if outcome.state == "paused":
            clock(f"paused; nothing is lost. Go on with: agft resume {spec.name}")
            return 1
        if then_promote:
            from study.promote_session import promote_on  # it measures, so it imports torch

            promotion = promote_on(store, services, cluster, clock)
    if promotion:
        from study.promote_show import show_promotion

        show_promotion(wide_console(), promotion, services)
    print(f"\nMLflow UI: {outcome.mlflow_page}")
    if services.home:
        print(f"           user {services.mlflow_username}, password: mlflow_password in {services.home}/secrets.json")
        print("           `agft stack down` stops the services; data stays")
    return 0


def _show(store: StudyStore, home: Path, outcome: Outcome, *, here: bool) -> None:
    study = store.load()
    assert study.baseline is not None
    goal = study.spec.goal.resolve(study.baseline)
    console = wide_console()
    console.print()
    console.print(trials_table(study.spec, outcome.trials, goal))
    best = best_trial(outcome.trials, goal)
    if best is None or best.last is None:
        console.print("no full-length trial reaches every floor yet")
    else:
        own, clip = best.last, study.baseline
        console.print(
            f"best: trial {best.number}, epoch {own['best_epoch']}: clean {percent(own['best_clean_accuracy'])} "
            f"(unmodified CLIP {percent(clip['clean_accuracy'])}), robust {percent(own['best_robust_accuracy'])} "
            f"(unmodified CLIP {percent(clip['robust_accuracy'])})"
        )
    if here:
        console.print(f"report: {home / 'reports' / study.name / 'report.html'}")
    else:  # this may be a node of a cluster that its reader cannot see into
        console.print(f"report: in the study's run in MLflow, and where you call `agft report {study.name}`")
