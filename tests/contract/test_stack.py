"""The embedded services: one stack however often it is asked for, closed to strangers, gone when told to go."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError

from infra import processes
from infra import stack as embedded
from infra.errors import ServiceError, UserError
from infra.services import Services, default_home, services_from_environment

UP = "import sys; from pathlib import Path; from infra import stack; print(stack.up(Path(sys.argv[1])).s3_endpoint)"
OPEN_ON_PURPOSE = {
    ("seaweedfs", "/status"),  # 200 with no body
    ("seaweedfs", "/healthz"),
    ("mlflow", "/health"),  # "OK"
    ("mlflow", "/api/3.0/mlflow/server-info"),  # feature flags of the server
}
READS = [
    "/", "/status", "/healthz", "/health", "/metrics", "/buckets/", "/buckets/agft/.agft/ready", "/agft/.agft/ready",
    "/agft", "/dir/status", "/dir/assign", "/dir/lookup?volumeId=1", "/cluster/status", "/vol/status", "/col/delete",
    "/ui/index.html", "/debug/pprof/", "/1,0", "/version", "/docs", "/openapi.json", "/graphql",
    "/api/2.0/mlflow/experiments/search?max_results=5", "/api/2.0/mlflow-artifacts/artifacts",
    "/ajax-api/2.0/mlflow/users",
    "/api/3.0/mlflow/server-info", "/?Action=ListUsers&Version=2010-05-08",
]  # fmt: skip
CHANGES = [
    ("PUT", "/agft/stranger"), ("POST", "/agft?delete"), ("DELETE", "/agft/.agft/ready"), ("PUT", "/stranger"),
    ("POST", "/buckets/agft/stranger"), ("PUT", "/buckets/agft/stranger"), ("DELETE", "/buckets/agft/.agft/ready"),
    ("POST", "/dir/assign"), ("POST", "/submit"), ("POST", "/vol/grow?count=1"), ("POST", "/vol/vacuum"),
    ("POST", "/col/delete?collection=agft"), ("POST", "/admin/assign_volume?volume=99"), ("POST", "/1,01637037d6"),
    ("POST", "/.tus/agft/stranger"), ("POST", "/?Action=CreateUser&UserName=stranger&Version=2010-05-08"),
    ("POST", "/api/2.0/mlflow/experiments/create"), ("POST", "/api/2.0/mlflow/users/create"), ("POST", "/signup"),
    ("PUT", "/api/2.0/mlflow-artifacts/artifacts/stranger"), ("POST", "/graphql"), ("POST", "/v1/traces"),
]  # fmt: skip


def listening(services: Services) -> dict[int, tuple[str, str]]:
    """Every TCP port that the stack's processes listen on, as {port: (service, address)}."""
    found = {}
    for name in ("seaweedfs", "mlflow"):
        for process in processes.members(f"{services.home}:{name}"):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.port] = (name, connection.laddr.ip)
    return found


def ask(port: int, method: str, path: str, *, tls: bool) -> tuple[int, bytes]:
    """(status, start of the body) of a request without credentials; status 0 when the connection is refused or cut."""
    connection: http.client.HTTPConnection
    if tls:
        trusting = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=5, context=trusting)
    else:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request(method, path, body=b"{}" if method in ("PUT", "POST") else None)
        answer = connection.getresponse()
        return answer.status, answer.read(400)
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def first_words(context: ssl.SSLContext, port: int, sent: bytes) -> bytes:
    """What a TLS server says to a client that shows no certificate; empty when it hangs up."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as raw, context.wrap_socket(raw) as secured:
            secured.sendall(sent)
            return secured.recv(100)
    except OSError:  # SSLError is one
        return b""


def s3(services: Services, *, secret_key: str | None = None, access_key: str | None = None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=services.s3_endpoint,
        region_name=services.region,
        aws_access_key_id=access_key or services.access_key,
        aws_secret_access_key=secret_key or services.secret_key,
    )


@pytest.fixture
def own_home(tmp_path: Path) -> Iterator[Path]:
    home = tmp_path / "home"
    yield home
    embedded.down(home)
    assert not [p for name in ("seaweedfs", "mlflow") for p in processes.members(f"{home}:{name}")]


def test_a_second_up_finds_the_running_services(stack: Services) -> None:
    before = {line.name: line.pid for line in embedded.status(stack.home)}
    start = time.monotonic()
    assert embedded.up(stack.home) == stack
    assert time.monotonic() - start < 15
    assert {line.name: line.pid for line in embedded.status(stack.home)} == before
    assert [line.state for line in embedded.status(stack.home)] == ["running", "running"]


def test_concurrent_ups_make_one_stack_a_killed_half_is_repaired_and_down_leaves_nothing(own_home: Path) -> None:
    ups = [subprocess.Popen([sys.executable, "-c", UP, str(own_home)], stdout=subprocess.PIPE) for _ in range(2)]
    endpoints = [process.communicate(timeout=300)[0].decode().strip() for process in ups]
    assert [process.returncode for process in ups] == [0, 0]
    assert endpoints[0] == endpoints[1] != ""
    assert len(processes.members(f"{own_home}:seaweedfs")) == 1  # and it outlives the command that started it
    services = embedded.up(own_home)
    assert services.s3_endpoint == endpoints[0]

    client = s3(services)
    for number in range(40):
        client.put_object(Bucket=services.bucket, Key=f"kept/{number}", Body=b"x" * number)
    pids = {line.name: line.pid for line in embedded.status(own_home)}
    os.kill(pids["seaweedfs"] or 0, signal.SIGKILL)
    assert embedded.up(own_home) == services  # same ports, same keys
    after = {line.name: line.pid for line in embedded.status(own_home)}
    assert after["mlflow"] == pids["mlflow"]
    assert after["seaweedfs"] != pids["seaweedfs"]
    for number in range(40):  # what was answered before the kill is there
        assert client.get_object(Bucket=services.bucket, Key=f"kept/{number}")["Body"].read() == b"x" * number

    left = processes.unix_sockets(processes.members(f"{own_home}:seaweedfs"))
    assert left
    (own_home / "state.json").write_text("{damaged")  # `down` finds the processes without it
    assert embedded.down(own_home) >= 2
    assert {line.state for line in embedded.status(own_home)} == {"stopped"}
    assert embedded.down(own_home) == 0
    assert not listening(services)
    assert not [path for path in left if path.exists()]


def test_every_port_is_on_loopback_and_answers_nothing_to_a_stranger(stack: Services) -> None:
    ports = listening(stack)
    assert {address for _, address in ports.values()} == {"127.0.0.1"}
    assert len(ports) == 9  # eight of SeaweedFS (four HTTP, four gRPC) and MLflow's: a new one must be looked at
    told: list[str] = []
    for port, (name, _) in ports.items():
        for tls in (False, True):
            for path in READS:
                code, body = ask(port, "GET", path, tls=tls)
                if code in range(200, 400) and (name, path) not in OPEN_ON_PURPOSE:
                    told.append(f"{name}:{port} tls={tls} GET {path} -> {code} {body[:80]!r}")
            for method, path in CHANGES:
                code, body = ask(port, method, path, tls=tls)
                if code in range(200, 400):
                    told.append(f"{name}:{port} tls={tls} {method} {path} -> {code} {body[:80]!r}")
    assert not told, "\n".join(told)
    keys = [entry["Key"] for entry in s3(stack).list_objects_v2(Bucket=stack.bucket).get("Contents", [])]
    assert ".agft/ready" in keys
    assert not [key for key in keys if "stranger" in key]


def test_what_is_open_on_purpose_holds_no_data(stack: Services) -> None:
    s3_port, mlflow_port = (int(url.rsplit(":", 1)[1]) for url in (stack.s3_endpoint, stack.mlflow_uri))
    assert ask(s3_port, "GET", "/status", tls=False) == (200, b"")
    assert ask(s3_port, "GET", "/healthz", tls=False) == (200, b"")
    assert ask(mlflow_port, "GET", "/health", tls=False) == (200, b"OK")
    info = json.loads(ask(mlflow_port, "GET", "/api/3.0/mlflow/server-info", tls=False)[1])
    assert info["store_type"] == "SqlStore"
    assert not [name for name, value in info.items() if isinstance(value, str) and name != "store_type"], info


def test_grpc_ports_do_not_speak_without_a_client_certificate(stack: Services) -> None:
    state = json.loads((stack.home / "state.json").read_text())
    ports = [port for name, port in state["seaweedfs"]["ports"].items() if name.endswith("_grpc")]
    assert len(ports) == 4
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
    for port in ports:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
            plain.sendall(preface)
            assert plain.recv(100) == b""
        context = ssl._create_unverified_context()
        context.set_alpn_protocols(["h2"])
        assert first_words(context, port, preface) == b""


@pytest.mark.parametrize("wrong", [{"secret_key": "0" * 48}, {"access_key": "nobody"}], ids=["secret", "access"])
def test_a_wrong_s3_key_is_refused(stack: Services, wrong: dict[str, str]) -> None:
    stranger = s3(stack, **wrong)
    for call in (
        lambda: stranger.list_buckets(),
        lambda: stranger.get_object(Bucket=stack.bucket, Key=".agft/ready"),
        lambda: stranger.put_object(Bucket=stack.bucket, Key="stranger", Body=b"x"),
    ):
        with pytest.raises(ClientError) as caught:
            call()
        assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 403


def test_a_wrong_mlflow_password_or_host_is_refused(stack: Services) -> None:
    import requests

    url = f"{stack.mlflow_uri}/api/2.0/mlflow/experiments/search?max_results=1"
    good = (stack.mlflow_username, stack.mlflow_password)
    assert requests.get(url, auth=good, timeout=10).status_code == 200
    assert requests.get(url, auth=(stack.mlflow_username, "password1234"), timeout=10).status_code == 401
    assert requests.get(url, auth=good, headers={"Host": "evil.example"}, timeout=10).status_code == 403


def test_secrets_are_in_no_command_line_and_no_log_and_files_are_private(stack: Services) -> None:
    secrets = list(json.loads((stack.home / "secrets.json").read_text()).values())
    secrets.remove(stack.access_key)  # a name, not a secret
    assert len(secrets) >= 6
    for process in psutil.process_iter():
        try:
            line = " ".join(process.cmdline())
        except psutil.Error:
            continue
        assert not [secret for secret in secrets if secret in line], process
    for log in (stack.home / "logs").iterdir():
        text = log.read_text(errors="replace")
        assert not [secret for secret in secrets if secret in text], log
    for secret in secrets:
        assert secret not in repr(stack)
    assert stat.S_IMODE(stack.home.stat().st_mode) == 0o700
    for path in stack.home.rglob("*"):
        holds_secrets = path.is_file() and path.suffix in (".json", ".toml", ".pem", ".ini", ".log", ".db")
        assert not holds_secrets or not path.stat().st_mode & 0o077, path


def test_an_environment_names_all_services_or_none() -> None:
    assert services_from_environment({"AWS_ACCESS_KEY_ID": "left from another job"}) is None
    full = {
        "AWS_ENDPOINT_URL": "http://s3:9000", "AWS_REGION": "eu-1", "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "s", "MLFLOW_TRACKING_URI": "http://mlflow:5000", "AGFT_BUCKET": "b",
        "MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p",
    }  # fmt: skip
    services = services_from_environment(full)
    assert services is not None
    assert services_from_environment(services.environment()) == services
    for name in ("AWS_REGION", "AWS_ACCESS_KEY_ID", "AGFT_BUCKET", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_PASSWORD"):
        with pytest.raises(UserError, match=name):
            services_from_environment({key: value for key, value in full.items() if key != name})
    assert default_home({"AGFT_HOME": "/x/y"}) == Path("/x/y")
    assert default_home({}).name == ".agft"


@pytest.mark.slow
def test_a_service_that_cannot_start_is_reported_with_the_end_of_its_log(own_home: Path) -> None:
    (own_home / "mlflow").mkdir(parents=True)
    (own_home / "mlflow" / "mlflow.db").write_text("this is not a database, " * 200)
    with pytest.raises(ServiceError, match=r"(?s)mlflow did not start.*mlflow\.log.*not a database"):
        embedded.up(own_home)
    assert {line.state for line in embedded.status(own_home)} == {"stopped"}


@pytest.mark.slow
def test_taken_ports_are_replaced_and_the_data_stays(own_home: Path) -> None:
    first = embedded.up(own_home)
    s3(first).put_object(Bucket=first.bucket, Key="kept", Body=b"bytes")
    embedded.down(own_home)
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", int(first.s3_endpoint.rsplit(":", 1)[1])))
        thief.listen()
        second = embedded.up(own_home)
    assert second.s3_endpoint != first.s3_endpoint
    assert second.mlflow_uri == first.mlflow_uri
    assert s3(second).get_object(Bucket=second.bucket, Key="kept")["Body"].read() == b"bytes"
    s3(second).put_object(Bucket=second.bucket, Key="new", Body=b"bytes")
