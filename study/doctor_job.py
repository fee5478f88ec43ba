"""A cluster seen from outside: the doctor's checks as a Ray Job on it, for terminals that reach its dashboard only.

The job is started without secrets, as `agft submit` starts one, and taken out of the cluster's list afterwards.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
import time
from dataclasses import asdict

from infra.check_machine import versions
from infra.cluster import SETTINGS
from infra.errors import ServiceError
from infra.finding import Finding, failed, ok, side_by_side
from infra.jobs import Jobs
from infra.services import default_home
from study.doctor_cluster import CLUSTER_SECONDS, RAY, check_cluster
from study.doctor_database import database_check
from study.doctor_study import StudyNeeds

__all__ = ["JOB_SECONDS", "check_by_job", "main"]

MARK = "agft-doctor-findings "
JOB_SECONDS = CLUSTER_SECONDS + 60.0
DATABASE_SECONDS = 25.0
POLL_SECONDS = 0.5
FORGET_SECONDS, QUIET_SECONDS = 15.0, 3.0


def check_by_job(address: str, needs: StudyNeeds | None) -> list[Finding]:
    """What the checks say that run on the cluster whose dashboard is at `address`."""
    try:
        jobs = Jobs(address)
        version = jobs.check()
    except ServiceError as error:
        text = str(error)
        if "token" in text:
            return [
                failed(RAY, text.partition(": set ")[0], "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its file")
            ]
        return [failed(RAY, text, "start the cluster, or correct the dashboard's address")]
    identity = f"agft-doctor-{secrets.token_hex(6)}"
    wanted = json.dumps(None if needs is None else {**asdict(needs), "datasets": dict(needs.datasets)})
    command = shlex.join(["python", "-m", "study.doctor_job", wanted])
    try:
        jobs.submit(identity, command, environment={**SETTINGS, "PYTHONUNBUFFERED": "1"})
        return [ok(RAY, f"{address}: Ray {version}, takes jobs"), *_result(jobs, identity)]
    except ServiceError as error:
        return [failed(RAY, str(error), "look at the job in the cluster's dashboard")]


def _result(jobs: Jobs, identity: str) -> list[Finding]:
    deadline = time.monotonic() + JOB_SECONDS - 10
    while (job := jobs.job(identity)) is not None and not job.ended:
        if time.monotonic() > deadline:
            jobs.stop(identity)
            return [
                failed(RAY, f"job {identity} is {job.status} after {JOB_SECONDS - 10:.0f} s", "is the head overloaded?")
            ]
        time.sleep(POLL_SECONDS)
    text = jobs.output(identity)
    _forget(jobs, identity)
    line = next((line for line in text.splitlines() if line.startswith(MARK)), None)
    if line is None:
        last = (text.strip().splitlines() or ["it printed nothing"])[-1][:250]
        remedy = "where `ray start` ran, `python` must have this agft"
        return [failed("versions", f"the cluster cannot run the doctor: {last}", remedy)]
    return [Finding(**row) for row in json.loads(line.removeprefix(MARK))]


def _forget(jobs: Jobs, identity: str) -> None:
    """Take the job out of the list for good: whoever watched its process may write once more that it has ended."""
    quiet_since = time.monotonic()
    deadline = quiet_since + FORGET_SECONDS
    while time.monotonic() < min(deadline, quiet_since + QUIET_SECONDS):
        if jobs.job(identity) is not None:
            jobs.forget(identity)
            quiet_since = time.monotonic()
        time.sleep(POLL_SECONDS)


def main() -> int:
    """On the cluster: print the findings in one line."""
    given = json.loads(sys.argv[1])
    needs = None if given is None else StudyNeeds(**given)
    found = side_by_side(
        {
            "cluster": (CLUSTER_SECONDS, lambda: check_cluster(needs, versions())),
            "database": (DATABASE_SECONDS, database_check(default_home(os.environ))),
        },
        where="the cluster",
    )
    print(MARK + json.dumps([finding.as_json() for finding in found]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
