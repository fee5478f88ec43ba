"""The compose stack as real containers, a study submitted to it from outside, and what its ports tell a stranger.

Images are not built here, that takes too long: docs/deploy.md says how. 8 nested trials.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.support.services import hosts
from tests.support.services.compose import PODMAN, ROOT, Stack, containers, instances
from trainers.files import cache_folder

pytestmark = [pytest.mark.slow, pytest.mark.nested, pytest.mark.timeout(1500)]

IMAGES = {
    "POSTGRES_IMAGE": "localhost/agft-postgres-standin:local",
    "AGFT_IMAGE": "localhost/agft:local",
    "AGFT_MLFLOW_IMAGE": "localhost/agft-mlflow:local",
    "AGFT_STORAGE_IMAGE": "localhost/agft-storage:local",
}
# Port -> paths that answer 200 without credentials. They tell nothing about studies.
PUBLIC = {
    5000: {"/health", "/api/3.0/mlflow/server-info"},
    8333: {"/healthz", "/status"},
    8265: {"/", "/api/gcs_healthz", "/api/authentication_mode"},
    52365: {"/api/healthz", "/api/local_raylet_healthz"},
}
METRICS_PORT = 8090  # of Ray's nodes: counts and sizes for Prometheus, under every path
PATHS = (
    "/", "/health", "/healthz", "/status", "/version", "/metrics", "/api/version", "/api/jobs/", "/api/v0/nodes",
    "/nodes?view=summary", "/api/cluster_status", "/api/healthz", "/api/gcs_healthz", "/api/local_raylet_healthz",
    "/api/authentication_mode", "/api/2.0/mlflow/experiments/search?max_results=5", "/ajax-api/2.0/mlflow/users/get",
    "/agft", "/agft?list-type=2", "/agft/.agft/ready", "/buckets/agft/?limit=5", "/dir/status", "/dir/assign",
    "/vol/status", "/logs", "/api/actors", "/api/packages/", "/api/3.0/mlflow/server-info",
)  # fmt: skip
CHANGES = (
    ("POST", "/api/jobs/", b'{"entrypoint": "true"}'), ("POST", "/api/job_agent/jobs/", b'{"entrypoint": "true"}'),
    ("PUT", "/agft/stranger", b"x"), ("DELETE", "/agft/.agft/ready", b""), ("PUT", "/stranger", b""),
    ("POST", "/buckets/agft/stranger", b"x"), ("POST", "/submit", b"x"),
    ("POST", "/api/2.0/mlflow/experiments/create", b'{"name": "stranger"}'),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/stranger", b"x"),
    ("POST", "/api/2.0/mlflow/users/create", b'{"username": "stranger", "password": "a-long-password"}'),
)  # fmt: skip


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What docker/up writes, and the images' names here."""
    if reason := hosts.why_not():
        pytest.skip(reason)
    if shutil.which("podman") is None:
        pytest.skip("no podman here: apt-get install podman runc")
    for image in IMAGES.values():
        if subprocess.run([*PODMAN, "image", "exists", image], check=False).returncode != 0:
            pytest.skip(f"no image {image} here: docs/deploy.md says how it is built")
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([ROOT / "docker" / "up", "--env-only"], check=True, capture_output=True,
                   env={"PATH": "/usr/bin:/bin", "AGFT_ENV_FILE": str(folder / "env")})  # fmt: skip
    lines = [line for line in (folder / "env").read_text().splitlines() if not line.startswith("#")]
    shutil.copy(ROOT / "study" / "recipes" / "demo.yaml", folder)
    folder.chmod(0o755)
    cache = folder / "cache"  # what is drawn already need not be drawn again in every container
    for known in cache_folder().glob("tiny-*"):
        shutil.copytree(known, cache / "agft-study" / known.name)
    cache.mkdir(exist_ok=True)
    for path in (cache, *cache.rglob("*")):
        os.chown(path, 1000, 1000)
    sizes = {"AGFT_WORKERS": "2", "AGFT_WORKER_CPUS": "1", "AGFT_CACHE_VOLUME": str(cache)}
    return dict(line.split("=", 1) for line in lines) | IMAGES | sizes | {"AGFT_STUDIES": str(folder)}


@pytest.fixture(scope="module")
def stack(variables: dict[str, str]) -> Iterator[Stack]:
    with containers(variables) as stack:
        yield stack


def test_images_run_without_root_bring_a_health_check_and_hold_no_secret(variables):
    values = {value for name, value in variables.items() if re.search("PASSWORD|SECRET|TOKEN|KEY", name)}
    for name in ("AGFT_IMAGE", "AGFT_MLFLOW_IMAGE", "AGFT_STORAGE_IMAGE"):
        done = subprocess.run(
            [*PODMAN, "image", "inspect", variables[name]], capture_output=True, text=True, check=True
        )
        [found] = json.loads(done.stdout)
        assert found["User"] == "1000:1000"
        assert found["Healthcheck"]["Test"][:4] == ["CMD", "python", "-m", "infra.deploy.health"] or (
            found["Healthcheck"]["Test"][1:] == ["python", "-m", "infra.deploy.object_store", "check"]
        )
        assert len(found["Config"]["Labels"]["org.opencontainers.image.revision"]) == 40
        assert not re.search("PASSWORD|SECRET|TOKEN|_KEY", " ".join(found["Config"]["Env"]))
        assert not any(value in done.stdout for value in values)


def test_the_demo_study_submitted_from_outside_is_run_by_both_workers(stack):
    told = stack.agft("submit", "demo.yaml", "--follow").stdout
    assert re.search(r"job agft-demo-\d+-1 submitted at http://ray-head:8265", told)
    assert "8 of 8 trials done" in told
    [study] = json.loads(stack.agft("status", "demo", "--json").stdout)
    assert study["state"] == "finished"
    ends = [(trial["state"], trial["epochs"]) for trial in study["trials"]]
    assert len(ends) == 8
    assert all(state == "pruned" or (state, epochs) == ("complete", 4) for state, epochs in ends)
    assert ("complete", 4) in ends
    trained = [host for host in stack.hosts.addresses if "RayTrainWorker" in worker_logs(stack, host)]
    assert sorted(trained) == ["ray-worker-1", "ray-worker-2"]


def worker_logs(stack: Stack, host: str) -> str:
    """First lines of what a node's worker processes wrote: Ray names them after what they run."""
    find = "cat /tmp/ray/session_latest/logs/worker-*.out /tmp/ray/session_latest/logs/worker-*.err 2>/dev/null"
    done = subprocess.run([*PODMAN, "exec", stack.container(host), "sh", "-c", find], capture_output=True, text=True,
                          check=False)  # fmt: skip
    return done.stdout


def open_ports(stack: Stack, host: str) -> dict[int, str]:
    """TCP ports on which a host hears others, with the program behind each."""
    done = subprocess.run(stack.hosts.command(host, ["ss", "-Hltnp"]), capture_output=True, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        address, _, port = line.split()[3].rpartition(":")
        if address not in ("127.0.0.1", "[::1]"):
            program = re.search(r'users:\(\("([^"]+)"', line)
            found[int(port)] = program[1] if program else "?"
    return found


def ask(address: str, port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes] | None:
    """Status and beginning of an answer; None from a port that does not speak HTTP."""
    connection = http.client.HTTPConnection(address, port, timeout=5)
    try:
        connection.request(method, path, body=body, headers={"Host": f"mlflow:{port}"})
        answer = connection.getresponse()
        return answer.status, answer.read(200)
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def test_no_open_port_gives_data_or_takes_a_change_from_a_stranger(stack, variables):
    told, spoke = [], 0
    for host in instances(stack.services):
        address = stack.hosts.addresses[host]
        ports = open_ports(stack, host)
        assert ports, host
        for port, program in ports.items():
            asked = [("GET", path, b"") for path in PATHS] + list(CHANGES)
            for method, path, body in asked:
                answer = ask(address, port, method, path, body)
                if answer is None:
                    continue
                spoke += 1
                allowed = method == "GET" and path in PUBLIC.get(port, ())
                allowed = allowed or (port == METRICS_PORT and answer[1].startswith(b"# HELP "))
                if answer[0] < 400 and not allowed:
                    told.append(f"{host} {port} ({program}) {method} {path}: {answer}")
    assert spoke > 100, "several ports speak HTTP"
    assert not told, "\n".join(told)


def test_the_pages_strangers_may_see_are_there(stack):
    for host, port in (("mlflow", 5000), ("storage", 8333), ("ray-head", 8265), ("ray-worker-2", 52365)):
        for path in PUBLIC[port]:
            answer = ask(stack.hosts.addresses[host], port, "GET", path)
            assert answer is not None, (host, path)
            assert answer[0] == 200, (host, path, answer)


def test_postgres_and_the_gRPC_ports_want_their_credentials(stack, variables):
    addresses = stack.hosts.addresses
    told = postgres_says(addresses["postgres"], "agft", "agft", "wrong")
    assert "password authentication failed" in told
    stranger = (
        "import sys, grpc\n"
        "from ray.core.generated import gcs_service_pb2 as messages, gcs_service_pb2_grpc as services\n"
        "stub = services.NodeInfoGcsServiceStub(grpc.insecure_channel(sys.argv[1]))\n"
        "token = sys.stdin.read()\n"
        "try:\n"
        "    stub.GetAllNodeInfo(messages.GetAllNodeInfoRequest(), timeout=10,\n"
        "                        metadata=[('authorization', f'Bearer {token}')] if token else [])\n"
        "    print('OK')\n"
        "except grpc.RpcError as error:\n"
        "    print(error.code().name)\n"
    )

    def gcs(token: str) -> str:
        done = subprocess.run([sys.executable, "-c", stranger, f"{addresses['ray-head']}:6379"], input=token,
                              capture_output=True, text=True, check=True)  # fmt: skip
        return done.stdout.strip()

    assert gcs("") == "UNAUTHENTICATED"
    assert gcs("wrong") == "UNAUTHENTICATED"
    assert gcs(variables["RAY_AUTH_TOKEN"]) == "OK"
    assert first_byte(addresses["storage"], 18333) == b"", "no client certificate, no answer"


def first_byte(address: str, port: int) -> bytes:
    """What a TLS port says to a client that trusts everybody and has no certificate of its own."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection((address, port), timeout=5) as raw, trusting.wrap_socket(raw) as channel:
            channel.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            return channel.recv(1)
    except OSError:
        return b""


def postgres_says(address: str, user: str, database: str, password: str) -> str:
    """Why PostgreSQL refuses; empty when it does not."""
    program = (
        "import os, sys, psycopg\n"
        "try:\n"
        "    psycopg.connect(host=sys.argv[1], user=sys.argv[2], dbname=sys.argv[3], connect_timeout=5)\n"
        "except psycopg.OperationalError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, address, user, database], capture_output=True, text=True,
                          check=True, env={"PATH": "/usr/bin:/bin", "PGPASSWORD": password})  # fmt: skip
    return done.stdout


def test_one_services_password_does_not_open_anothers_database(stack, variables):
    address = stack.hosts.addresses["postgres"]
    assert "permission denied for database" in postgres_says(address, "agft", "mlflow", variables["STUDY_DB_PASSWORD"])
    assert "permission denied for database" in postgres_says(address, "mlflow", "agft", variables["MLFLOW_DB_PASSWORD"])
    assert postgres_says(address, "mlflow", "mlflow", variables["MLFLOW_DB_PASSWORD"]) == ""


def test_no_secret_is_in_a_command_line_or_in_what_the_containers_print(stack, variables):
    values = {name: value for name, value in variables.items() if re.search("PASSWORD|SECRET|TOKEN|KEY", name)}
    shown = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    for host in instances(stack.services):
        shown += stack.logs(host)
    assert [name for name, value in values.items() if value in shown] == []
