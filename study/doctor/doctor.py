"""`agft doctor`: everything that a study leans on, looked at from here and from every node, in seconds.

Nothing is started, migrated or kept: objects and models of the checks are deleted, and a dead service costs its own
time limit, beside the others.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from pathlib import Path

from infra.checks.diagnosis import HERE, Diagnosis, failed, ok, placed, side_by_side, warning
from infra.checks.machine import versions
from infra.cluster.jobs import dashboard_address
from infra.errors import ServiceError, UserError
from infra.services import Services, go_direct, services_from_environment, use
from infra.stack import seaweed
from infra.stack.embedded import NAMES, addresses, credentials, definitions, settings_of
from infra.stack.stack import ports_of, status
from study.doctor.cluster import CLUSTER_SECONDS, JOB_SECONDS, RAY, check_by_job, check_cluster, demands_token
from study.doctor.database import DATABASE_SECONDS, database_check
from study.doctor.node import machine_checks, service_checks
from study.doctor.study import StudyNeeds

SERVICES = "services"


def examine(home: Path, needs: StudyNeeds | None, *, address: str | None = None) -> list[Diagnosis]:
    """All findings, this machine's first. Puts the embedded services' addresses into this process's environment.

    `address`: of a cluster's dashboard; the cluster is then checked by a job on it.
    """
    go_direct()
    found: list[Diagnosis] = []
    dashboard = dashboard_named(address)
    cluster = bool(dashboard) or os.environ.get("RAY_ADDRESS", "local") not in ("", "local")
    marks: tuple[str, ...] = ()
    services = None
    try:
        services = services_from_environment(os.environ)
        if services is None:
            rows, services = _embedded(home)
            found += rows
            marks = tuple(f"{home}:{name}" for name in NAMES)
        else:
            found.append(ok(SERVICES, "named by the environment"))
    except (UserError, ServiceError) as error:
        found.append(failed(SERVICES, str(error), "complete the environment"))
    token = demands_token() or not cluster
    checks = machine_checks(needs, gpus_here=not cluster, token=token, marks=marks)
    if services is not None:
        checks |= service_checks(services)
    checks["database"] = (DATABASE_SECONDS, database_check(home))
    if dashboard:
        checks["cluster"] = (JOB_SECONDS, functools.partial(check_by_job, dashboard, needs))
    elif cluster:
        checks["cluster"] = (CLUSTER_SECONDS, lambda: check_cluster(needs, versions()))
    rows = side_by_side(checks)
    if not cluster:
        rows.append(ok(RAY, "no cluster named (RAY_ADDRESS): a study starts Ray here, on loopback, with a token"))
    return placed(found + rows, HERE)


def _embedded(home: Path) -> tuple[list[Diagnosis], Services | None]:
    """The embedded services as they are, used by this process from now on; None where they do not run."""
    try:
        seaweed.executable()
    except UserError as error:
        return [failed(SERVICES, "the environment names no services, and the embedded ones are not installed",
                       str(error).partition(": ")[2])], None  # fmt: skip
    lines = status(home)
    if all(line.state == "stopped" for line in lines):
        word = "do not run" if lines else "were never started"
        return [ok(SERVICES, f"the environment names none; the embedded ones {word} yet: `agft run` starts them")], None
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
    services = use(addresses(home, kept, definitions(home, kept, ports_of(home), settings)))
    if settings.bind != "127.0.0.1":
        remedy = "agft stack up --bind 127.0.0.1, unless that network is trusted"
        rows.append(warning(SERVICES, f"the embedded ones listen on {settings.bind}, not encrypted", remedy))
    return rows or [ok(SERVICES, f"embedded: {', '.join(f'{line.name} {line.version}' for line in lines)}")], services


def dashboard_named(address: str | None) -> str | None:
    """The dashboard through which the cluster is reached, if one is named; `UserError` for what is no such address."""
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS", "")
    if address is None and not named.startswith("http") and not os.environ.get("RAY_API_SERVER_ADDRESS"):
        return None
    return dashboard_address(address, os.environ)


def exit_code(findings: Sequence[Diagnosis]) -> int:
    """1 if anything failed; warnings are allowed."""
    return int(any(finding.state == "failed" for finding in findings))
