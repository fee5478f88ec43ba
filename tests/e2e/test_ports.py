"""From a stranger's side: every port of a study that `agft run` runs, with the Ray that it starts."""

from __future__ import annotations

import http.client
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import psutil
import pytest

from tests.support.services.real_run import Run, cleared, read_until
from tests.support.study_files import trained

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STUDY = trained(
    name="open", train="{epochs: 200, batch_size: 64, samples_per_epoch: 256}", budget="{trials: 1}",
    resources="{workers: 1, cpus_per_worker: 1, max_concurrent: 1}",
)  # fmt: skip
# The only paths that answer without credentials; none of them holds data.
PUBLIC = {
    "/",  # the dashboard's empty page: all it would show is behind the token
    "/favicon.ico",
    "/api/gcs_healthz",  # the dashboard: the word "success"
    "/status", "/healthz",  # S3: no body
    "/health",  # MLflow: OK
    "/api/3.0/mlflow/server-info",  # MLflow: feature flags
}  # fmt: skip
READS = [
    *sorted(PUBLIC), "/api/version", "/api/jobs/", "/nodes?view=summary", "/metrics", "/api/cluster_status",
    "/api/v0/actors", "/api/v0/nodes", "/api/v0/logs", "/api/gcs_healthz", "/api/local_raylet_healthz", "/logs/",
    "/api/v0/logs/file?filename=raylet.out", "/api/serve/applications/", "/api/packages/gcs/x.zip", "/logical/actors",
    "/buckets/agft", "/agft", "/version", "/api/2.0/mlflow/experiments/search?max_results=1", "/timezone",
    "/worker/traceback?pid=1", "/task/traceback", "/memory_profile", "/events",
]  # fmt: skip
CHANGES = [
    ("POST", "/api/jobs/"), ("DELETE", "/api/jobs/x"), ("POST", "/api/jobs/x/stop"), ("PUT", "/api/packages/gcs/x.zip"),
    ("PUT", "/api/serve/applications/"), ("DELETE", "/api/serve/applications/"), ("POST", "/api/job_agent/jobs/"),
    ("POST", "/api/authenticate"), ("PUT", "/agft/stranger"), ("POST", "/api/2.0/mlflow/experiments/create"),
]  # fmt: skip
CALLS = [
    "NodeInfoGcsService/GetAllNodeInfo", "JobInfoGcsService/GetAllJobInfo", "ActorInfoGcsService/GetAllActorInfo",
    "InternalKVGcsService/InternalKVKeys", "InternalKVGcsService/InternalKVPut", "JobInfoGcsService/AddJob",
    "NodeManagerService/GetNodeStats", "NodeManagerService/ShutdownRaylet", "NodeManagerService/RequestWorkerLease",
    "CoreWorkerService/GetCoreWorkerStats", "CoreWorkerService/Exit", "CoreWorkerService/PushTask",
    "ObjectManagerService/Pull", "RayletDriver/Init", "RayletDriver/ClusterInfo", "LogService/ListLogs",
    "autoscaler.AutoscalerStateService/GetClusterStatus", "RuntimeEnvService/GetRuntimeEnvsInfo",
    "ReporterService/GetTraceback", "EventService/SendEvents",
]  # fmt: skip
RAY = ("gcs_server", "raylet", "ray::", "dashboard", "runtime_env", "default_worker")
TARGET = "ray-stranger-was-here"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    run = Run(home=tmp_path / "home", file=tmp_path / "study.yaml")
    run.file.write_text(STUDY)
    with cleared(run):
        yield run


SILENT = -1


def ask(port: int, method: str, path: str, body: bytes) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=3)
    try:
        connection.request(method, path, body=body or None, headers={"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, answer.read(200)
    except TimeoutError:
        return SILENT, b""
    except (OSError, http.client.HTTPException):
        return 0, b""  # no HTTP/1, or hung up
    finally:
        connection.close()


def call(port: int, name: str) -> str:
    """The status of an empty gRPC request to a method."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        method = channel.unary_unary(f"/ray.rpc.{name}")
        try:
            method(b"", timeout=2)
            return "OK"
        except grpc.RpcError as error:
            return str(error.code().name)


def test_no_port_of_a_running_study_gives_data_or_accepts_a_change(run: Run, tmp_path: Path) -> None:
    driver = run.start("run", str(run.file))
    read_until(driver, lambda line: re.search(r"trial +0  epoch 1/", line) is not None)
    ports: dict[int, str] = {}
    for process in run.processes():
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                line, host = " ".join(process.cmdline()), connection.laddr.ip.removeprefix("::ffff:")
                name = next((part for part in (*RAY, "weed", "mlflow") if part in line), line[:60])
                assert host == "127.0.0.1", (process, connection)
                ports[connection.laddr.port] = name
    names = " ".join(ports.values())
    for part in ("gcs_server", "raylet", "dashboard", "weed", "mlflow"):
        assert part in names, ports

    marker = tmp_path / TARGET
    body = b'{"entrypoint": "touch %s"}' % str(marker).encode()
    told = []
    for port, name in ports.items():
        silent = 0
        for method, path in [*(("GET", path) for path in READS), *CHANGES]:
            if silent == 3:
                break  # it does not speak HTTP/1 and does not hang up either
            status, text = ask(port, method, path, b"" if method == "GET" else body)
            silent += status == SILENT
            if status in range(200, 400) and not (method == "GET" and path in PUBLIC):
                told.append(f"{port} ({name}) {method} {path} -> {status} {text!r}")
    refused = set()
    for port, name in ports.items():
        if not any(
            part in name for part in ("gcs_server", "raylet", "ray::", "dashboard", "runtime_env", "default_worker")
        ):
            continue
        for each in CALLS:
            code = call(port, each)
            if code == "UNAUTHENTICATED":
                refused.add(port)
            if code == "OK":
                told.append(f"{port} ({name}) gRPC {each} -> OK")
    assert not told, "\n".join(told)
    assert len(refused) >= 3, "GCS, raylet and workers speak gRPC and want the token"
    assert not marker.exists()

    driver.send_signal(signal.SIGINT)
    driver.communicate(timeout=120)
    assert driver.returncode == 1  # paused: it had gone on all the while
