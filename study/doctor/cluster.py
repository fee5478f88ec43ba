"""The Ray cluster: whether it lets us in and keeps others out, and every node's own checks."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, replace
from http.client import HTTPException

from infra.checks.diagnosis import Diagnosis, Failed, check, failed, ok, side_by_side, skipped, warning
from infra.checks.machine import versions
from infra.checks.s3 import clock_finding
from infra.cluster.cluster import SETTINGS
from infra.cluster.jobs import Jobs
from infra.errors import ServiceError, UserError
from infra.services import default_home
from study.doctor.database import DATABASE_SECONDS, database_check
from study.doctor.node import NODE_SECONDS, examine_node
from study.doctor.study import StudyNeeds

RAY, TOKEN, DASHBOARD = "Ray", "Ray token", "Ray dashboard"
CLUSTER_SECONDS = NODE_SECONDS + 40.0
TIMEOUT_SECONDS = 5.0
REMEDY_TOKEN = (
    "start every node with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH: whoever reaches Ray's ports runs code"
)


def demands_token() -> bool:
    """Whether this process's environment switches Ray's token on."""
    return os.environ.get("RAY_AUTH_MODE", "").lower() == "token"


@check
def check_cluster(needs: StudyNeeds | None, here: dict[str, str]) -> Iterator[Diagnosis]:
    """Connect to `RAY_ADDRESS` and ask every live node. `here`: the versions of this machine."""
    from infra.cluster.cluster import connect, disconnect

    address = os.environ["RAY_ADDRESS"]
    try:
        cluster = connect()
    except (ServiceError, UserError) as error:
        raise _no_connection(address, str(error)) from None
    try:
        yield ok(RAY, f"{address}: {len(cluster.nodes)} nodes, {_resources(cluster.total)}")
        yield from _room(needs, cluster.total)
        if cluster.dashboard_url is None:
            yield failed(
                DASHBOARD,
                "does not run: trials that are stopped early would keep their GPUs, and `agft submit` has no Jobs API",
                "pip install 'ray[default]' on the head and start it with --include-dashboard=true",
            )
        else:
            yield from _stranger(cluster.dashboard_url)
        yield from _nodes(needs, here)
    finally:
        disconnect()


def _resources(total: dict[str, float]) -> str:
    return f"{total.get('CPU', 0):g} CPU, {total.get('GPU', 0):g} GPU"


def _no_connection(address: str, text: str) -> Failed:
    lowered = text.lower()
    if "version mismatch" in lowered or "same version" in lowered:
        return Failed(RAY, f"{address}: {text}", "install the cluster's versions of Python and Ray here")
    if _demands_token_at(address):  # of which Ray's own message says nothing
        remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to the file that its nodes were started with"
        return Failed(RAY, f"{address} answers, and refuses the token that this terminal has, or has not", remedy)
    return Failed(RAY, f"{address}: {text[:250]}", "start the cluster, or correct RAY_ADDRESS (HEAD:6379)")


def _demands_token_at(address: str) -> bool:
    """Whether a GCS at `host:port` turns away a request without a token."""
    import grpc

    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo")
        try:
            ask(b"", timeout=TIMEOUT_SECONDS)
        except grpc.RpcError as error:
            return bool(error.code() == grpc.StatusCode.UNAUTHENTICATED)
    return False


def _room(needs: StudyNeeds | None, total: dict[str, float]) -> Iterator[Diagnosis]:
    if needs is not None and needs.gpus_per_worker > total.get("GPU", 0.0):
        yield failed(
            "GPUs",
            f"the study asks for {needs.gpus_per_worker:g} GPU a worker, the whole cluster has "
            f"{total.get('GPU', 0.0):g}",
            "add a node with GPUs (is its driver installed? `nvidia-smi` there), or set resources.gpus_per_worker: 0",
        )


def _stranger(url: str) -> Iterator[Diagnosis]:
    """What the dashboard says to somebody without a token."""
    try:
        with urllib.request.urlopen(f"{url}/api/version", timeout=TIMEOUT_SECONDS):
            yield failed(TOKEN, f"{url} answers without a token", REMEDY_TOKEN)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            yield from (ok(TOKEN, "demanded"), ok(DASHBOARD, f"{url} answers"))
        else:
            yield failed(DASHBOARD, f"{url}: HTTP {error.code}", "look at dashboard.log on the head")
    except (OSError, HTTPException) as error:
        yield ok(TOKEN, "demanded") if demands_token() else failed(TOKEN, "not demanded", REMEDY_TOKEN)
        remedy = "fine if it listens on the head's loopback only; `agft submit` then needs a tunnel"
        yield warning(DASHBOARD, f"{url} is not reachable from here ({error})", remedy)


def _nodes(needs: StudyNeeds | None, here: dict[str, str]) -> Iterator[Diagnosis]:
    """A task on every live node, all at once; one that does not answer is a row as well."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    task = ray.remote(num_cpus=0, max_retries=0)(examine_node)
    sent = time.time()
    asked = {
        identity: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(identity, soft=False)).remote(
            needs, token=demands_token()
        )
        for identity in nodes
    }
    deadline = time.monotonic() + NODE_SECONDS + 15
    for identity, answer in asked.items():
        name = f"node {nodes[identity]['NodeManagerAddress']} ({identity[:6]})"
        try:
            told = ray.get(answer, timeout=max(0.1, deadline - time.monotonic()))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(answer, force=True)
            rows = [failed(RAY, "a task on this node does not answer", "look at raylet.err there; is its memory full?")]
        except ray.exceptions.RayError as error:
            rows = [_cannot_run(str(error))]
        else:
            rows = [Diagnosis(**row) for row in told["findings"]]
            rows = [*_versions(told["versions"], here), *rows, *_clock(told["clock"], sent)]
        yield from (replace(row, where=name) for row in rows)


def _cannot_run(text: str) -> Diagnosis:
    last = text.strip().splitlines()[-1][:250]
    if "ModuleNotFoundError" in text or "No module named" in text:
        return failed("versions", f"has no agft of this version: {last}", "install the same agft on every node")
    return failed(RAY, f"cannot run a task: {last}", "look at raylet.err on this node")


def _versions(theirs: dict[str, str], here: dict[str, str]) -> list[Diagnosis]:
    differing = [name for name in here if theirs.get(name) != here[name]]
    if not differing:
        return [ok("versions", "as on the driver")]
    shown = ", ".join(
        f"{name} is {theirs.get(name, 'missing')[:40]}, on the driver {here[name][:40]}" for name in differing
    )
    return [failed("versions", shown, "install the same environment on every node (constraints.txt, one image)")]


def _clock(theirs: float, sent: float) -> list[Diagnosis]:
    """The node's clock at the task's start lies between sending and receiving, if the clocks agree."""
    received = time.time()
    if sent <= theirs <= received:
        return [ok("clock", "agrees with the driver's")]
    ahead = theirs - received if theirs > received else theirs - sent
    row = clock_finding("this node", ahead, precision=1.0)
    return [row] if row.state != "ok" else [skipped("clock", row.detail)]


# A cluster seen from outside: the doctor's checks as a Ray Job on it, for terminals that reach its dashboard only.
#
# The job is started without secrets, as `agft submit` starts one, and taken out of the cluster's list afterwards.

MARK = "agft-doctor-findings "
JOB_SECONDS = CLUSTER_SECONDS + 60.0
POLL_SECONDS = 0.5
FORGET_SECONDS, QUIET_SECONDS = 15.0, 3.0


@check
def check_by_job(address: str, needs: StudyNeeds | None) -> Iterator[Diagnosis]:
    """What the checks say that run on the cluster whose dashboard is at `address`."""
    try:
        jobs = Jobs(address)
        version = jobs.check()
    except ServiceError as error:
        text = str(error)
        if "token" in text:
            remedy = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its file"
            raise Failed(RAY, text.partition(": set ")[0], remedy) from None
        raise Failed(RAY, text, "start the cluster, or correct the dashboard's address") from None
    identity = f"agft-doctor-{secrets.token_hex(6)}"
    wanted = json.dumps(None if needs is None else {**asdict(needs), "datasets": dict(needs.datasets)})
    command = shlex.join(["python", "-m", "study.doctor.cluster", wanted])
    try:
        jobs.submit(identity, command, environment={**SETTINGS, "PYTHONUNBUFFERED": "1"})
        yield ok(RAY, f"{address}: Ray {version}, takes jobs")
        yield from _result(jobs, identity)
    except ServiceError as error:
        raise Failed(RAY, str(error), "look at the job in the cluster's dashboard") from None


def _result(jobs: Jobs, identity: str) -> list[Diagnosis]:
    deadline = time.monotonic() + JOB_SECONDS - 10
    while (job := jobs.job(identity)) is not None and not job.ended:
        if time.monotonic() > deadline:
            jobs.stop(identity)
            detail = f"job {identity} is {job.status} after {JOB_SECONDS - 10:.0f} s"
            raise Failed(RAY, detail, "is the head overloaded?")
        time.sleep(POLL_SECONDS)
    text = jobs.output(identity)
    _forget(jobs, identity)
    line = next((line for line in text.splitlines() if line.startswith(MARK)), None)
    if line is None:
        last = (text.strip().splitlines() or ["it printed nothing"])[-1][:250]
        remedy = "where `ray start` ran, `python` must have this agft"
        raise Failed("versions", f"the cluster cannot run the doctor: {last}", remedy)
    return [Diagnosis(**row) for row in json.loads(line.removeprefix(MARK))]


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
