"""The checks that are made on every machine: the driver's, and by a Ray task each node's."""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

from infra.checks.diagnosis import Check, Diagnosis, failed, side_by_side
from infra.checks.machine import (  # fmt: skip
    check_disk,
    check_gpus,
    check_packages,
    check_ports,
    check_secret_files,
    check_shared_memory,
    temporary_folder,
    versions,
)
from infra.services import Services, default_home, missing_variables, services_from_environment
from study.doctor.study import StudyNeeds, check_datasets, check_entries, check_weights
from trainers.device import minimum_driver

NODE_SECONDS = 60.0
SECONDS = {"packages": 10.0, "GPUs": 45.0, "shared memory": 10.0, "disk": 10.0, "ports": 30.0, "secret files": 10.0,
           "datasets": 30.0, "weights": 45.0, "entries": 10.0, "S3": 30.0, "MLflow": 30.0}  # fmt: skip


def machine_checks(
    needs: StudyNeeds | None, *, gpus_here: bool, token: bool, marks: tuple[str, ...] = ()
) -> dict[str, tuple[float, Check]]:
    """Of this machine alone. `gpus_here`: whether the study's workers run here, so that its GPUs must be here."""
    wanted = needs.gpus_per_worker if needs and gpus_here else 0.0
    checks: dict[str, Check] = {
        "packages": check_packages,
        "GPUs": functools.partial(check_gpus, wanted, minimum_driver=minimum_driver),
        "shared memory": check_shared_memory,
        "disk": functools.partial(check_disk, _places()),
        "ports": functools.partial(check_ports, marks, token=token),
        "secret files": functools.partial(check_secret_files, default_home(os.environ), _token_files()),
    }
    if needs:
        checks |= {
            "datasets": functools.partial(check_datasets, needs),
            "weights": functools.partial(check_weights, needs),
        }
    if needs and needs.entries:
        checks["entries"] = functools.partial(check_entries, needs)
    return {name: (SECONDS[name], check) for name, check in checks.items()}


def _token_files() -> list[Path]:
    """Where Ray looks for the token that lets code run here."""
    return [Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or "~/.ray/auth_token").expanduser()]


def _places() -> list[tuple[str, Path]]:
    from trainers.files import cache_folder

    return [
        ("studies", default_home(os.environ)),
        ("caches", cache_folder()),
        ("temporary files", temporary_folder()),
    ]


def service_checks(services: Services) -> dict[str, tuple[float, Check]]:
    """S3, whose address this process's environment has, and MLflow."""
    from infra.checks.mlflow import check_mlflow
    from infra.checks.s3 import check_s3

    checks: dict[str, Check] = {
        "S3": functools.partial(check_s3, services.bucket),
        "MLflow": functools.partial(check_mlflow, services),
    }
    return {name: (SECONDS[name], check) for name, check in checks.items()}


def examine_node(needs: StudyNeeds | None, *, token: bool) -> dict[str, Any]:
    """Run as a Ray task on a node: `{"findings", "versions", "clock"}`; plain values."""
    clock = time.time()
    checks = machine_checks(needs, gpus_here=False, token=token)
    checks.pop("packages")  # compared with the driver's, from `versions`
    found: list[Diagnosis] = []
    missing = missing_variables(os.environ)
    services = None if missing else services_from_environment(os.environ)
    if services is None:
        found.append(failed("environment", f"not set where `ray start` ran: {', '.join(missing)}", "set the services' "
                            "variables there, on every node"))  # fmt: skip
    else:
        checks |= service_checks(services)
    found += side_by_side(checks)
    return {"findings": [finding.as_json() for finding in found], "versions": versions(), "clock": clock}
