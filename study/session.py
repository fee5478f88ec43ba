"""One command's session on this machine: services, Ray, the study, and what a person sees of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.cluster.cluster import Cluster, connect, disconnect
from infra.services import Services, services_from_environment
from infra.stack import stack
from study.console import Clock

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
