"""docker/compose.yaml without images: its services as processes of this checkout, each on a host of its own.

Environment and commands are the file's; programs that its images start by themselves are named here, and a service
that ends is started again, as the file asks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.stack import postgres_programs
from tests.support.services.compose import ROOT, instances, services
from tests.support.services.hosts import Hosts, hosts
from tests.support.services.real_run import AGFT
from trainers.files import cache_folder

OWN = {  # what the images' CMD says
    "storage": [sys.executable, "-m", "infra.deploy.object_store", "serve"],
    "mlflow": [sys.executable, "-m", "infra.deploy.tracking_server"],
}
RAY = [sys.executable, "-m", "ray.scripts.scripts"]
INIT = ROOT / "infra" / "deploy" / "kubernetes" / "base" / "postgres-init.sh"
AGAIN = 'while true; do "$@"; echo "ended with $?, again"; sleep 2; done'
HEALTHY_SECONDS = 180.0


@dataclass
class Hosted:
    """Running services by host."""

    hosts: Hosts
    services: dict[str, dict]
    folder: Path

    def environment(self, host: str, service: str) -> dict[str, str]:
        """The service's own, and what a process of this checkout needs."""
        given = {name: str(value) for name, value in self.services[service].get("environment", {}).items()}
        programs = [Path(sys.executable).parent, "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        if service == "postgres":  # its image has psql and pg_isready
            programs.insert(0, postgres_programs.programs())
        return {
            "PATH": os.pathsep.join(map(str, programs)), "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1", "HOME": str(self.folder / host), "AGFT_HOME": str(self.folder / host / "home"),
            "OMP_NUM_THREADS": "1", "AGFT_CACHE": str(cache_folder()), **given,
        }  # fmt: skip

    def command(self, host: str, service: str) -> list[str]:
        """The service's command line."""
        if service in OWN:
            return OWN[service]
        line = [str(word) for word in self.services[service]["command"]]
        assert line[0] == "ray"
        return [*RAY, *line[1:], "--temp-dir", str(self.folder / host / "ray"), "--object-store-memory", str(200 << 20)]

    def start(self, host: str, service: str) -> None:
        """Start a service; whenever it ends, it is started again."""
        (self.folder / host).mkdir()
        with (self.folder / f"{host}.log").open("w") as log:
            subprocess.Popen(
                self.hosts.command(host, ["bash", "-c", AGAIN, "-", *self.command(host, service)]),
                env=self.environment(host, service), cwd=self.folder / host, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def wait_healthy(self, host: str, service: str) -> None:
        """Until the service's own health check passes on its host."""
        test = [sys.executable if word == "python" else word for word in self.services[service]["healthcheck"]["test"]]
        deadline = time.monotonic() + HEALTHY_SECONDS
        while True:
            done = subprocess.run(
                self.hosts.command(host, test[1:]), env=self.environment(host, service), capture_output=True, text=True,
                check=False,
            )  # fmt: skip
            if done.returncode == 0:
                return
            log = self.folder / f"{host}.log"
            told = log.read_text()[-2000:] if log.exists() else ""
            assert time.monotonic() < deadline, f"{host}: {done.stdout}{done.stderr}\n{told}"
            time.sleep(1)

    def agft(self, *arguments: str, check: bool = True, seconds: float = 600) -> subprocess.CompletedProcess[str]:
        """A command on a host that is no node of the cluster, with the terminal's environment."""
        (self.folder / "agft").mkdir(exist_ok=True)
        done = subprocess.run(
            self.hosts.command("agft", [*AGFT, *arguments]), env=self.environment("agft", "agft"), cwd=self.folder,
            capture_output=True, text=True, check=False, timeout=seconds,
        )  # fmt: skip
        assert done.returncode == 0 or not check, f"agft {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def processes(self, host: str) -> list[psutil.Process]:
        """All that run on a host."""
        done = subprocess.run(["ip", "netns", "pids", self.hosts.namespace(host)], capture_output=True, text=True,
                              check=True)  # fmt: skip
        found = []
        for pid in done.stdout.split():
            try:
                found.append(psutil.Process(int(pid)))
            except psutil.NoSuchProcess:
                continue
        return found

    def start_postgres(self, host: str) -> None:
        """PostgreSQL on its host, with the roles and databases that its first start makes."""
        programs, account = postgres_programs.programs(), postgres_programs.account()
        assert account is not None, "network namespaces need root"
        home, data = self.folder / host, self.folder / host / "data"
        home.mkdir()
        environment = self.environment(host, "postgres")
        secret = home / "password"
        secret.write_text(environment["POSTGRES_PASSWORD"])
        for path in (home, secret):
            os.chown(path, *account)
        as_account = ["setpriv", f"--reuid={account[0]}", f"--regid={account[1]}", "--clear-groups"]
        init = [f"{programs}/initdb", "-D", str(data), "-U", "postgres", "-A", "scram-sha-256", "-N",
                f"--pwfile={secret}"]  # fmt: skip
        subprocess.run([*as_account, *init], check=True, capture_output=True, cwd=home)
        with (data / "pg_hba.conf").open("a") as rules:
            rules.write("host all all all scram-sha-256\n")
        line = [f"{programs}/postgres", "-D", str(data), "-k", str(home), "-c", "listen_addresses=*", "-c", "fsync=off"]
        with (self.folder / f"{host}.log").open("w") as log:
            subprocess.Popen(self.hosts.command(host, [*as_account, *line]), stdout=log, stderr=log, cwd=home,
                             start_new_session=True)  # fmt: skip
        self.wait_healthy(host, "postgres")
        told = {**environment, "PGPASSWORD": environment["POSTGRES_PASSWORD"], "PGHOST": "127.0.0.1"}
        subprocess.run(self.hosts.command(host, ["bash", str(INIT)]), env=told, check=True, capture_output=True)


@contextmanager
def hosted(variables: Mapping[str, str]) -> Iterator[Hosted]:
    """Start what stands in the file, each service when those that it waits for are healthy; and take it all away."""
    found = services(variables)
    standing = instances(found)
    folder = Path(tempfile.mkdtemp(prefix="agft-h-", dir="/tmp"))  # short: socket names hold 107 characters
    folder.chmod(0o711)  # PostgreSQL's user passes through
    try:
        with hosts([*standing, "agft"]) as network:
            made = Hosted(network, found, folder)
            for host, service in standing.items():
                for needed in found[service].get("depends_on", {}):
                    for other in (name for name, kind in standing.items() if kind == needed):
                        made.wait_healthy(other, needed)
                if service == "postgres":
                    made.start_postgres(host)
                else:
                    made.start(host, service)
            for host, service in standing.items():
                made.wait_healthy(host, service)
            yield made
    finally:
        shutil.rmtree(folder, ignore_errors=True)
