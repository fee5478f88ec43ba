"""One command's session on this machine: the services and the Ray cluster that it uses."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from infra.cluster import raw_output
from infra.cluster.cluster import Cluster, connect, disconnect
from infra.cluster.watch import left_when_lost, lost
from infra.errors import ServiceError, UserError
from infra.s3 import lacking_keys
from infra.services import Services, names_storage, services_from_environment, use
from infra.stack import stack
from study.console import Say, say

CLOSE_SECONDS = 60.0


def services_here(home: Path, say: Say, *, kept_up: bool = True) -> Services:
    """The services that the environment names, or the embedded ones, started if need be.

    From then on this process and those that it starts, Ray's among them, know them; nothing is sent through Ray.
    `kept_up`: embedded ones are started again when they die, for a study that runs for days.
    """
    services = services_from_environment(os.environ)
    if services is not None and (lacking := lacking_keys()):
        raise UserError(f"S3 at {services.s3_endpoint}: {lacking[0]}")
    if services is None:
        say("starting the embedded services (S3, MLflow) ...")
        services = stack.up(home, kept_up=kept_up)
        say(f"MLflow UI: {services.mlflow_uri}  (user {services.mlflow_username}, password in {home}/secrets.json)")
    return use(services)


def running_services(home: Path) -> Services | None:
    """The services as `services_here` finds them, or None where the embedded ones do not run: nothing is started."""
    services = services_from_environment(os.environ)
    if services is None and (found := stack.status(home)) and all(one.state == "running" for one in found):
        services = stack.up(home)
    return None if services is None else use(services)


def services_to_read(home: Path) -> Services:
    """The services, for a command that only reads, which starts none: `ServiceError` with what does."""
    if (services := running_services(home)) is None:
        raise ServiceError(f"the embedded services of {home} do not run, and a command that only reads starts none: "
                           "agft stack up")  # fmt: skip
    return services


def storage_here(home: Path, say: Say, *, start: bool = True) -> str:
    """S3 alone, for what needs no MLflow; returns the bucket of studies and models, empty where none is named.

    What the environment says is enough however little it is: weights may be read with a key alone, from AWS itself.
    `start`: False where nothing is to be started, as `services_to_read`.
    """
    if not names_storage(os.environ):
        if start:
            say("connecting to the embedded storage ...")
        use(stack.up(home) if start else services_to_read(home))
    return os.environ.get("AGFT_BUCKET", "")


@contextmanager
def cluster_here(tell: Say, *, num_cpus: float | None = None) -> Iterator[Cluster]:
    """Ray, connected to or started, and let go again by whoever was first. `ServiceError` when it is lost meanwhile."""
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        yield connect()
        return
    tell("connecting to Ray ..." if os.environ.get("RAY_ADDRESS") else "starting Ray on this machine ...")
    with raw_output.apart():
        cluster = connect(num_cpus=num_cpus)
        with left_when_lost(lambda reason: say(f"failed: {reason}; nothing is lost, the same command goes on")):
            try:
                yield cluster
            except KeyboardInterrupt:
                if gone := lost():
                    raise ServiceError(f"{gone}; nothing is lost, the same command goes on") from None
                raise
            finally:
                disconnect()
