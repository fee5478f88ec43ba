"""A Ray cluster of separate nodes on this machine, made by `ray start` with token authentication, beside real services.

Every node has processes, ports and a folder of its own and can be killed for itself. Services' addresses and keys
reach the nodes only through the environment of `ray start`, as on a real cluster.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.cluster.cluster import SETTINGS
from infra.services import Services
from infra.stack import processes, stack
from tests.support.services.databases import postgres
from tests.support.services.real_run import AGFT, FAIR

RAY = [sys.executable, "-m", "ray.scripts.scripts"]
OURS = ("AWS_", "MLFLOW_", "AGFT_", "RAY_")


@dataclass
class TwoNodes:
    """Head and worker nodes with services and a PostgreSQL study database. `home` is the cluster's AGFT_HOME."""

    folder: Path
    services: Services
    database: str
    ports: dict[str, int] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)  # name -> mark of its processes

    @property
    def head_address(self) -> str:
        """Of the GCS, for `RAY_ADDRESS`."""
        return f"127.0.0.1:{self.ports['gcs']}"

    @property
    def dashboard(self) -> str:
        """Of the Jobs API, for `agft submit --address`."""
        return f"http://127.0.0.1:{self.ports['dashboard']}"

    def environment(self, **more: str) -> dict[str, str]:
        """Of a node or a terminal that may use the cluster: services, database, token."""
        clean = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        return {
            **clean, **self.services.environment(), "AGFT_STUDY_DB": self.database,
            "AGFT_HOME": str(self.folder / "home"), "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.folder / "token"), "PYTHONUNBUFFERED": "1",
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", **more,
        }  # fmt: skip

    def start_head(self, *, num_cpus: int = 1) -> None:
        """Start the head, on the same ports as before if there was one."""
        self.ports = self.ports or dict(zip(("gcs", "dashboard"), processes.free_ports(2), strict=True))
        head = ["--head", "--port", str(self.ports["gcs"]), "--dashboard-host", "127.0.0.1"]
        self._start("head", [*head, "--dashboard-port", str(self.ports["dashboard"])], num_cpus)

    def start_worker(self, name: str = "worker", *, num_cpus: int = 1, without: Sequence[str] = ()) -> None:
        """Start a node that joins, `without` some variables of the environment."""
        self._start(name, ["--address", self.head_address], num_cpus, without)

    def _start(self, name: str, arguments: list[str], num_cpus: int, without: Sequence[str] = ()) -> None:
        mark = f"{self.folder}:{name}"
        self.nodes[name] = mark
        agent, client = processes.free_ports(2)
        command = [
            *RAY, "start", *arguments, "--node-ip-address", "127.0.0.1", "--num-cpus", str(num_cpus),
            "--temp-dir", str(self.folder / f"ray-{name}"), "--min-worker-port", "0", "--max-worker-port", "0",
            "--dashboard-agent-listen-port", str(agent), "--object-store-memory", str(200 << 20),
            "--disable-usage-stats",
        ]  # fmt: skip
        if name == "head":
            command += ["--ray-client-server-port", str(client)]
        environment = self.environment(**SETTINGS, **{processes.MARKER: mark})
        environment |= FAIR | {"OMP_WAIT_POLICY": "PASSIVE", "RAY_worker_maximum_startup_concurrency": "8"}  # few cores
        environment = {key: value for key, value in environment.items() if key not in without}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    def kill(self, name: str) -> int:
        """SIGKILL to every process of a node, the raylet first; returns how many there were."""
        found = processes.members(self.nodes[name])
        for process in sorted(found, key=lambda each: "raylet" not in each.name()):
            process.kill()
        assert processes.wait_gone(self.nodes[name], 20)
        return len(found)

    def agft(self, *arguments: str, check: bool = True, seconds: float = 300, **more: str) -> Any:
        """Run a command as a terminal with the cluster's environment does, to its end."""
        done = subprocess.run(
            [*AGFT, *arguments], env=self.environment(**more), capture_output=True, text=True, check=False,
            timeout=seconds, cwd=self.folder,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"agft {arguments} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}")
        return done

    def start(self, *arguments: str, **more: str) -> subprocess.Popen[str]:
        """Start a command in a session of its own, its output in one pipe."""
        return subprocess.Popen(
            [*AGFT, *arguments], env=self.environment(**more), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, start_new_session=True, cwd=self.folder,
        )  # fmt: skip

    def status(self, study: str) -> dict[str, Any]:
        """One study, as `agft status STUDY --json` gives it."""
        [found] = json.loads(self.agft("status", study, "--json").stdout)
        return dict(found)

    def stop(self) -> None:
        """End every node."""
        for mark in self.nodes.values():
            processes.terminate(mark, grace_seconds=3)


@contextmanager
def two_nodes(services: Services, *, head_cpus: int = 1, worker_cpus: int = 1) -> Iterator[TwoNodes]:
    """A cluster of a head and a worker, ended with everything it started."""
    folder = Path(tempfile.mkdtemp(prefix="agft-c-", dir="/tmp"))  # short: socket names hold 107 characters
    processes.write_private(folder / "token", secrets.token_hex(32))
    with postgres() as database:
        cluster = TwoNodes(folder, services, database)
        try:
            cluster.start_head(num_cpus=head_cpus)
            if worker_cpus:
                cluster.start_worker(num_cpus=worker_cpus)
            yield cluster
        finally:
            cluster.stop()
            shutil.rmtree(folder, ignore_errors=True)


def main() -> None:
    """By hand: `python -m tests.support.services.clusters` starts one and waits; `env.sh` there is for a shell."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # a shell's background job ignores Ctrl-C
    with tempfile.TemporaryDirectory(prefix="agft-s-") as home:
        try:
            with two_nodes(stack.up(Path(home))) as cluster:
                names = sorted(n for n in cluster.environment() if n.startswith(OURS))
                lines = [f"export {name}='{cluster.environment()[name]}'" for name in names]
                processes.write_private(cluster.folder / "env.sh", "\n".join(lines) + "\n")
                print(
                    f"head {cluster.head_address}  dashboard {cluster.dashboard}  . {cluster.folder}/env.sh", flush=True
                )
                while True:
                    time.sleep(60)
        finally:
            stack.down(Path(home))


if __name__ == "__main__":
    main()
