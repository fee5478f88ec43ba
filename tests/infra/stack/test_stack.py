"""The embedded services: one stack however often it is asked for, closed to strangers, gone when told to go."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import psycopg
import pytest
import sqlalchemy as sa
from botocore.exceptions import ClientError

from infra.errors import ServiceError, UserError
from infra.services import Services, default_home, services_from_environment
from infra.stack import embedded as parts
from infra.stack import postgres, postgres_programs, processes
from infra.stack import stack as embedded
from infra.stack.embedded import NAMES, with_settings

UP = (
    "import sys; from pathlib import Path; from infra.stack import stack; "
    "print(stack.up(Path(sys.argv[1])).s3_endpoint)"
)
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
    for name in ("seaweedfs", "mlflow", "postgres", "keeper"):
        for process in processes.members(f"{services.home}:{name}"):
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    found[connection.laddr.port] = (name, connection.laddr.ip)
    return found


def ask(port: int, method: str, path: str, *, tls: bool, host: str = "127.0.0.1") -> tuple[int, bytes]:
    """(status, start of the body) of a request without credentials; status 0 when the connection is refused or cut."""
    connection: http.client.HTTPConnection
    if tls:
        trusting = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection(host, port, timeout=5, context=trusting)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=5)
    try:
        connection.request(method, path, body=b"{}" if method in ("PUT", "POST") else None)
        answer = connection.getresponse()
        return answer.status, answer.read(400)
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def told_to_a_stranger(ports: dict[int, tuple[str, str]]) -> list[str]:
    """Every answer that gives data or accepts a change, of requests without credentials to every port."""
    told = []
    for port, (name, host) in ports.items():
        for tls in (False, True):
            for method, path in [*(("GET", path) for path in READS), *CHANGES]:
                code, body = ask(port, method, path, tls=tls, host=host)
                if code in range(200, 400) and not (method == "GET" and (name, path) in OPEN_ON_PURPOSE):
                    told.append(f"{name}:{port} tls={tls} {method} {path} -> {code} {body[:80]!r}")
    return told


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
    assert not [p for name in (*NAMES, "keeper") for p in processes.members(f"{home}:{name}")]
    shutil.rmtree(postgres.folder_of(home), ignore_errors=True)  # root's is outside the home


def test_a_second_up_finds_the_running_services(stack: Services) -> None:
    before = {line.name: line.pid for line in embedded.status(stack.home)}
    assert embedded.up(stack.home) == stack
    assert {line.name: line.pid for line in embedded.status(stack.home)} == before
    assert [line.state for line in embedded.status(stack.home)] == ["running", "running"]


@pytest.mark.slow
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
    assert not (told := told_to_a_stranger(ports)), "\n".join(told)
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


def addresses_here() -> list[str]:
    """IPv4 addresses of this machine that are not loopback."""
    entries = [entry for each in psutil.net_if_addrs().values() for entry in each if entry.family == socket.AF_INET]
    return [entry.address for entry in entries if not entry.address.startswith("127.")]


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.skipif(not addresses_here(), reason="this machine has no address but loopback")
def test_on_a_lan_with_postgresql_strangers_get_nothing_and_what_dies_comes_back(own_home: Path) -> None:
    bind = addresses_here()[0]
    services = embedded.up(own_home, bind=bind, postgres=True, kept_up=True)
    lines = {line.name: line for line in embedded.status(own_home)}
    assert [line.state for line in lines.values()] == ["running"] * 3
    assert all(line.version[0].isdigit() for line in lines.values())
    assert lines["postgres"].disk_bytes > 10e6

    ports = listening(services)
    state = json.loads((own_home / "state.json").read_text())
    ours = {state[name]["ports"][port] for name, port in
            (("seaweedfs", "s3"), ("seaweedfs", "s3_grpc"), ("mlflow", "http"), ("postgres", "sql"))}  # fmt: skip
    found = {
        (name, connection.laddr.port, connection.laddr.ip)
        for name in (*NAMES, "keeper")
        for process in processes.members(f"{own_home}:{name}")
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {port for _, port, address in found if address != "127.0.0.1"} == ours
    assert {address for _, _, address in found} == {"127.0.0.1", bind}
    assert len(ports) == 10  # PostgreSQL's beside the nine: a new one must be looked at
    assert not (told := told_to_a_stranger({port: (name, address) for name, port, address in found})), "\n".join(told)
    strangers_at_postgresql(bind, state["postgres"]["ports"]["sql"])

    client = s3(services)
    client.put_object(Bucket=services.bucket, Key="kept", Body=b"bytes")
    url = parts.database_address(own_home)
    assert url is not None
    engine = sa.create_engine(url, pool_pre_ping=True)
    with engine.begin() as connection:
        connection.execute(sa.text("CREATE TABLE kept AS SELECT 7 AS number"))
    name = mlflow_experiment(services, "kept")
    pids = {line.pid for line in embedded.status(own_home)}
    for pid in pids:
        os.kill(pid or 0, signal.SIGKILL)
    wait_for(lambda: [line.state for line in embedded.status(own_home)] == ["running"] * 3)
    assert not pids & {line.pid for line in embedded.status(own_home)}
    assert client.get_object(Bucket=services.bucket, Key="kept")["Body"].read() == b"bytes"
    with engine.connect() as connection:
        assert connection.execute(sa.text("SELECT number FROM kept")).scalar_one() == 7
    engine.dispose()
    assert mlflow_experiment(services, "kept") == name
    assert "postgres" in (own_home / "logs" / "keeper.log").read_text()

    log = own_home / "logs" / "seaweedfs.log"
    with open(log, "ab") as file:
        file.write(b"x" * (processes.LOG_LIMIT_BYTES + 1))
    wait_for(lambda: log.with_suffix(".log.1").exists() and log.stat().st_size < 1_000_000, 30)
    password = json.loads((own_home / "secrets.json").read_text())["postgres_password"]
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert password not in " ".join(process.cmdline())
    for each in (own_home / "logs").iterdir():
        assert password not in each.read_text(errors="replace"), each

    back = embedded.up(own_home, bind="127.0.0.1", postgres=False)
    assert back.s3_endpoint.startswith("http://127.0.0.1:")
    assert {address for _, address in listening(back).values()} == {"127.0.0.1"}
    assert not processes.members(f"{own_home}:postgres")


def strangers_at_postgresql(host: str, port: int) -> None:
    """No password, a wrong one, another user and another database: none gets in."""
    known, closed = {"user": "agft", "dbname": "agft"}, "no pg_hba.conf entry"
    for wrong, said in (
        ({**known}, "no password supplied"),
        ({**known, "password": "x"}, "authentication"),
        ({**known, "password": "x", "user": "postgres"}, closed),
        ({**known, "password": "x", "dbname": "template1"}, closed),
    ):
        with pytest.raises(psycopg.OperationalError, match=said):
            psycopg.connect(host=host, port=port, connect_timeout=5, passfile="/dev/null", **wrong)


def mlflow_experiment(services: Services, name: str) -> str:
    """Id of an experiment, which is made if there is none."""
    import requests

    auth, base = (
        (services.mlflow_username, services.mlflow_password),
        f"{services.mlflow_uri}/api/2.0/mlflow/experiments",
    )
    found = requests.get(f"{base}/get-by-name", params={"experiment_name": name}, auth=auth, timeout=10)
    if found.status_code == 200:
        return str(found.json()["experiment"]["experiment_id"])
    return str(requests.post(f"{base}/create", json={"name": name}, auth=auth, timeout=10).json()["experiment_id"])


def test_an_address_that_is_not_this_machines_is_refused_and_nothing_changes(tmp_path: Path) -> None:
    for wrong, said in (("0.0.0.0", "every interface"), ("198.51.100.1", "not here"), ("localhost", "not an IPv4"),
                        ("::1", "not an IPv4")):  # fmt: skip
        with pytest.raises(UserError, match=f"--bind: .*{said}.*expected 127.0.0.1"):
            with_settings(tmp_path, bind=wrong, use_postgres=None)
    assert list(tmp_path.iterdir()) == []


def test_without_its_programs_postgresql_is_refused_and_nothing_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_programs, "WHEEL", "no_such_package")
    monkeypatch.setattr(postgres_programs, "INSTALLED", tmp_path / "none")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no PostgreSQL server is installed"):
        with_settings(tmp_path, bind=None, use_postgres=True)
    assert list(tmp_path.iterdir()) == []


def test_a_log_is_bounded_while_its_writer_goes_on(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "writer.log"
    mark = f"{tmp_path}:writer"
    code = "import time\nfor n in range(10**6): print(n, flush=True); time.sleep(0.001)"
    processes.spawn([sys.executable, "-c", code], mark=mark, environment=os.environ, folder=tmp_path, log=log)
    try:
        wait_for(lambda: log.stat().st_size > 200, 30)
        processes.bound_logs(log.parent, limit_bytes=200)
        older = log.with_suffix(".log.1")
        assert older.read_text().splitlines()[0] == "0"
        assert stat.S_IMODE(older.stat().st_mode) == 0o600
        wait_for(lambda: log.stat().st_size > 20, 30)
        lines = log.read_text().splitlines()
        assert int(lines[1]) == int(lines[0]) + 1 > 1  # it goes on where it was, at the beginning of the file
    finally:
        processes.terminate(mark, grace_seconds=1)
