"""How many trials fit, and a local cluster that answers only to its owner and leaves nothing behind."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.cluster import cluster
from infra.cluster.cluster import max_concurrent, named_cluster
from infra.errors import UserError
from infra.stack import processes

DRIVER = """
import json, sys, time
{first}
from infra.cluster import cluster
made = cluster.connect(num_cpus=2)
again = cluster.connect()
import ray
group = ray.util.placement_group([{{"CPU": 1}}]); ray.get(group.ready())
held = len(cluster.placement_groups())
ray.util.remove_placement_group(group)
print(json.dumps({{"mark": cluster._mark, "address": made.address, "local": made.local, "same": again == made,
    "dashboard": made.dashboard_url, "cpus": cluster.capacity()["CPU"], "held": held,
    "left": len(cluster.placement_groups())}}), flush=True)
sys.stdin.readline()
cluster.disconnect()
"""
STRANGER = """
import sys, grpc
from ray.core.generated import gcs_service_pb2 as messages, gcs_service_pb2_grpc as services
stub = services.NodeInfoGcsServiceStub(grpc.insecure_channel(sys.argv[1]))
token = sys.stdin.read()
headers = (("authorization", "Bearer " + token),) if token else ()
try:
    print(len(stub.GetAllNodeInfo(messages.GetAllNodeInfoRequest(), timeout=10, metadata=headers).node_info_list))
except grpc.RpcError as error:
    print(error.code().name)
"""


@pytest.mark.parametrize(
    ("per_trial", "total", "requested", "expected"),
    [
        ({"CPU": 2}, {"CPU": 8}, None, 4),
        ({"CPU": 8, "GPU": 1}, {"CPU": 64, "GPU": 4}, None, 4),  # GPUs are scarcer
        ({"CPU": 8, "GPU": 1}, {"CPU": 20, "GPU": 4}, None, 2),  # CPUs are
        ({"GPU": 0.1}, {"GPU": 0.3}, None, 3),  # 0.3 / 0.1 is 2.9999 in binary
        ({"CPU": 1, "GPU": 0}, {"CPU": 3}, None, 3),  # zero GPUs need no GPU
        ({"CPU": 2}, {"CPU": 8}, 3, 3),
        ({"CPU": 2}, {"CPU": 8}, 100, 4),
    ],
)
def test_the_scarcest_resource_decides(
    per_trial: dict[str, float], total: dict[str, float], requested: int | None, expected: int
) -> None:
    assert max_concurrent(per_trial, total, requested) == expected


def test_a_trial_that_never_fits_is_refused_with_the_numbers() -> None:
    with pytest.raises(UserError, match="needs 4 GPU, the whole cluster has 2"):
        max_concurrent({"CPU": 1, "GPU": 4}, {"CPU": 64, "GPU": 2})
    with pytest.raises(UserError, match="needs 1 GPU, the whole cluster has 0"):
        max_concurrent({"GPU": 1}, {"CPU": 64})
    with pytest.raises(UserError, match="max_concurrent: 0"):
        max_concurrent({"CPU": 1}, {"CPU": 64}, 0)
    with pytest.raises(UserError, match="needs nothing"):
        max_concurrent({}, {"CPU": 64})


def test_each_worker_must_fit_into_one_node() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 4.0, "GPU": 1.0}, {"CPU": 16.0}]
    total = {"CPU": 24.0, "GPU": 2.0}
    with pytest.raises(UserError, match=r"1 worker.* of 6 CPU, 1 GPU, each on one node.*room for 0"):
        max_concurrent({"CPU": 6, "GPU": 1}, total, per_worker={"CPU": 6, "GPU": 1}, nodes=nodes)
    assert max_concurrent({"CPU": 6}, total, per_worker={"CPU": 6}, nodes=nodes) == 2  # 24 / 6 would say 4
    fits = max_concurrent({"CPU": 8, "GPU": 2}, total, per_worker={"CPU": 4, "GPU": 1}, workers=2, nodes=nodes)
    assert fits == 1


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("ray://head:10001", "head:6379"),
        ("http://10.0.0.7:8265/", "10.0.0.7:6379"),
        ("ray://[fd00::1]:10001", "[fd00::1]:6379"),
        ("https://", "HEAD:6379"),
    ],
)
def test_an_address_of_another_port_of_the_head_is_refused_with_the_one_that_is_meant(address: str, meant: str) -> None:
    with pytest.raises(UserError, match=f"RAY_ADDRESS = .*: {re.escape(meant)}$"):
        named_cluster({"RAY_ADDRESS": address})
    assert named_cluster({"RAY_ADDRESS": meant}) == meant
    assert named_cluster({"RAY_ADDRESS": "local"}) is None


def test_a_head_is_found_by_an_address_of_ipv6_in_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("infra.cluster.watch.answers", lambda address: asked.append(address) or True)  # Ray's own call
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as listening:
        address = f"[::1]:{listening.getsockname()[1]}"
        assert cluster._reachable(address) == address
    assert asked == [address]


class Driver:
    """A process that called `connect`, and what it printed."""

    def __init__(self, home: Path, *, first: str = "") -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER.format(first=first)],
            env=kept | {"AGFT_HOME": str(home)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self.said: dict[str, Any] = json.loads(self.process.stdout.readline())

    def members(self) -> list[psutil.Process]:
        return processes.members(self.said["mark"])


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    started = Driver(tmp_path_factory.mktemp("ray_home") / "home")
    yield started
    started.process.kill()
    started.process.wait()
    processes.terminate(started.said["mark"], grace_seconds=1)


def test_a_local_cluster_is_described_and_counts_its_placement_groups(driver: Driver) -> None:
    said = driver.said
    assert said["local"]
    assert said["same"]
    assert said["cpus"] == 2
    assert (said["held"], said["left"]) == (1, 0)
    assert said["address"].startswith("127.0.0.1:")
    assert said["dashboard"].startswith("http://127.0.0.1:")


def test_a_terminal_that_is_closed_ends_no_process_of_a_local_cluster(driver: Driver) -> None:
    members = driver.members()
    assert {"raylet", "gcs_server"} <= {process.name() for process in members}
    for process in members:
        masks = dict(line.split(":\t") for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
        deaf = int(masks["SigBlk"], 16) | int(masks["SigIgn"], 16)
        assert deaf >> (signal.SIGHUP - 1) & 1, process


def test_a_local_cluster_listens_on_loopback_and_wants_its_token(driver: Driver) -> None:
    ports: dict[int, str] = {}
    for process in [*driver.members(), psutil.Process(driver.process.pid)]:
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip.removeprefix("::ffff:") == "127.0.0.1", (process, connection)
                ports[connection.laddr.port] = process.name()
    assert len(ports) >= 4
    told = []
    for port in ports:
        for path in ("/api/version", "/api/jobs/", "/nodes?view=summary", "/metrics", "/api/cluster_status"):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            try:
                connection.request("GET", path)
                answer = connection.getresponse()
                if answer.status == 200:
                    told.append(f"{port} ({ports[port]}) {path}: {answer.read(80)!r}")
            except (OSError, http.client.HTTPException):
                continue  # gRPC ports do not speak HTTP/1
            finally:
                connection.close()
    assert not told, "\n".join(told)

    def ask(token: str) -> str:
        command = [sys.executable, "-c", STRANGER, driver.said["address"]]
        done = subprocess.run(command, input=token, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    token = (driver.home / "ray_token").read_text()
    assert (driver.home / "ray_token").stat().st_mode & 0o777 == 0o600
    assert ask("") == "UNAUTHENTICATED"
    assert ask("0" * 64) == "UNAUTHENTICATED"
    assert ask(token) == "1"
    for process in psutil.process_iter():
        try:
            assert token not in " ".join(process.cmdline())
        except psutil.Error:
            continue


def test_a_killed_driver_takes_its_cluster_along(driver: Driver) -> None:
    assert len(driver.members()) >= 4
    os.kill(driver.process.pid, signal.SIGKILL)
    driver.process.wait()
    assert processes.wait_gone(driver.said["mark"], 15), driver.members()


@pytest.mark.slow
def test_disconnect_leaves_no_process_also_when_ray_was_imported_before(tmp_path: Path) -> None:
    started = Driver(tmp_path / "home", first="import ray, ray.tune")
    assert started.said["address"].startswith("127.0.0.1:")
    assert started.members()
    out, _ = started.process.communicate("\n", timeout=60)
    assert started.process.returncode == 0, out
    assert not started.members()


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_a_service_error(tmp_path: Path) -> None:
    code = (
        "from infra.cluster import cluster\nfrom infra.errors import ServiceError\n"
        "try: cluster.connect()\nexcept ServiceError as error: print('SAID', error)"
    )
    environment = os.environ | {"RAY_ADDRESS": "127.0.0.1:1", "AGFT_HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert "SAID Ray at 127.0.0.1:1" in done.stdout, done.stderr[-2000:]
