"""`agft doctor`: everything that a study leans on, looked at from here and from every node, in seconds.

Nothing is started, migrated or kept: objects and models of the checks are deleted, and a dead service costs its own
time limit, beside the others.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from infra.checks.finding import HERE, Finding, failed, ok, placed, side_by_side, warning
from infra.checks.machine import versions
from infra.cluster.jobs import dashboard_address
from infra.errors import ServiceError
from infra.errors import UserError as InfraUserError
from infra.services import services_from_environment
from study.doctor.cluster import CLUSTER_SECONDS, JOB_SECONDS, check_by_job, check_cluster, demands_token
from study.doctor.database import database_check
from study.doctor.node import machine_checks, service_checks
from study.doctor.study import StudyNeeds

SERVICES = "services"
DATABASE_SECONDS = 25.0


def examine(home: Path, needs: StudyNeeds | None, *, address: str | None = None) -> list[Finding]:
    """All findings, this machine's first. Puts the embedded services' addresses into this process's environment.

    `address`: of a cluster's dashboard; the cluster is then checked by a job on it.
    """
    found: list[Finding] = []
    dashboard = dashboard_named(address)
    cluster = bool(dashboard) or os.environ.get("RAY_ADDRESS", "local") not in ("", "local")
    marks: tuple[str, ...] = ()
    try:
        services = services_from_environment(os.environ)
        if services is None:
            rows, up = _embedded(home)
            found += rows
            marks = tuple(f"{home}:{name}" for name in ("seaweedfs", "mlflow", "postgres"))
        else:
            up = True
            found.append(ok(SERVICES, "named by the environment"))
    except (InfraUserError, ServiceError) as error:
        found.append(failed(SERVICES, str(error), "complete the environment"))
        up = False
    token = demands_token() or not cluster
    checks = machine_checks(needs, gpus_here=not cluster, token=token, marks=marks)
    if up:
        checks |= service_checks(os.environ["AGFT_BUCKET"])
    checks["database"] = (DATABASE_SECONDS, database_check(home))
    if dashboard:
        checks["cluster"] = (JOB_SECONDS, functools.partial(check_by_job, dashboard, needs))
    elif cluster:
        checks["cluster"] = (CLUSTER_SECONDS, lambda: check_cluster(needs, versions()))
    rows = side_by_side(checks)
    if not cluster:
        rows.append(ok("Ray", "no cluster named (RAY_ADDRESS): a study starts Ray here, on loopback, with a token"))
    return placed(found + rows, HERE)


def _embedded(home: Path) -> tuple[list[Finding], bool]:
    """The embedded services as they are; with addresses put into this process's environment if both answer."""
    from infra.stack import seaweed
    from infra.stack.embedded import addresses, credentials, definitions, settings_of
    from infra.stack.stack import ports_of, status

    try:
        seaweed.executable()
    except InfraUserError as error:
        return [failed(SERVICES, "the environment names no services, and the embedded ones are not installed",
                       str(error).partition(": ")[2])], False  # fmt: skip
    lines = status(home)
    if all(line.state == "stopped" for line in lines):
        word = "do not run" if lines else "were never started"
        return [
            ok(SERVICES, f"the environment names none; the embedded ones {word} yet: `agft run` starts them")
        ], False
    rows = [
        failed(
            SERVICES,
            f"embedded {line.name} is {line.state}{f': {line.detail}' if line.detail else ''}",
            f"agft stack up; its log: {line.log}",
        )
        for line in lines
        if line.state != "running"
    ]
    settings, kept = settings_of(home), credentials(home)
    services = addresses(home, kept, definitions(home, kept, ports_of(home), settings))
    os.environ.update(services.environment())
    if settings.bind != "127.0.0.1":
        rows.append(
            warning(
                SERVICES,
                f"the embedded ones listen on {settings.bind}, not encrypted",
                "agft stack up --bind 127.0.0.1, unless that network is trusted",
            )
        )
    return rows or [ok(SERVICES, f"embedded: {', '.join(f'{line.name} {line.version}' for line in lines)}")], True


def dashboard_named(address: str | None) -> str | None:
    """The dashboard through which the cluster is reached, if one is named; `UserError` for what is no such address."""
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    if address is None and not named.startswith("http") and not os.environ.get("RAY_API_SERVER_ADDRESS"):
        return None
    return dashboard_address(address, os.environ)


def exit_code(findings: Sequence[Finding]) -> int:
    """1 if anything failed; warnings are allowed."""
    return int(any(finding.state == "failed" for finding in findings))
