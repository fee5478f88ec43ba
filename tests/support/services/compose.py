"""docker/compose.yaml as real containers of podman, each on a host of its own: what a Docker engine does, without one.

Obeyed are: image, environment with its variables, command, entrypoint, working_dir, volumes, health checks and the
order of the start that they give, shm_size, cap_drop, security_opt and replicas. Not: build, published ports (every
host is reached by its address), restart and init.
"""

from __future__ import annotations

import re
import resource
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.support.services.hosts import Hosts, hosts

ROOT = Path(__file__).parents[3]
FILE = ROOT / "docker" / "compose.yaml"
VARIABLE = re.compile(r"\$\{(\w+)(?::([-?])([^}]*))?\}")
PODMAN = ["podman", "--cgroup-manager=cgroupfs", "--runtime", "runc"]
OPEN_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)[1]  # nobody may give more than they have
LIMITS = ["--ulimit", f"nofile={OPEN_FILES}:{OPEN_FILES}", "--ulimit", "nproc=20000:20000"]
HEALTHY_SECONDS = 240.0


def filled(value: Any, variables: Mapping[str, str]) -> Any:
    """`value` with its `${NAME}`, `${NAME:-default}` and `${NAME:?reason}` replaced, as compose does it."""
    if isinstance(value, dict):
        return {key: filled(part, variables) for key, part in value.items()}
    if isinstance(value, list):
        return [filled(part, variables) for part in value]
    if not isinstance(value, str):
        return value

    def replace(match: re.Match[str]) -> str:
        name, kind, text = match.groups()
        if found := variables.get(name):
            return found
        assert kind != "?", f"{name}: {text}"
        return text or ""

    return VARIABLE.sub(replace, value)


def services(variables: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services of the file, by name."""
    return dict(filled(yaml.safe_load(FILE.read_text())["services"], variables))


def instances(found: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Host -> service, of all that stand, replicas by number."""
    made = {}
    for name, service in found.items():
        if service.get("profiles"):
            continue
        count = int(service.get("deploy", {}).get("replicas", 1))
        made |= {f"{name}-{place}": name for place in range(1, count + 1)} if "deploy" in service else {name: name}
    return made


@dataclass
class Stack:
    """Running containers by host."""

    hosts: Hosts
    services: dict[str, dict[str, Any]]
    folder: Path
    volumes: set[str] = field(default_factory=set)

    def container(self, host: str) -> str:
        """Name of a host's container."""
        return f"{self.hosts.tag}-{host}"

    def run(self, host: str, service: str, *arguments: str, detach: bool = True) -> subprocess.CompletedProcess[str]:
        """Start a service on a host; with `detach=False` run it to its end with `arguments`."""
        wanted = self.services[service]
        secrets = self.folder / f"{host}.env"
        secrets.touch(mode=0o600)
        secrets.write_text("".join(f"{name}={value}\n" for name, value in wanted.get("environment", {}).items()))
        line = [
            *PODMAN, "run", "--name", self.container(host), "--hostname", host, *LIMITS, "--no-healthcheck",
            "--env-file", str(secrets),
            "--network", f"ns:/run/netns/{self.hosts.namespace(host)}",
            *(f"--add-host={name}:{address}" for name, address in self.hosts.addresses.items()),
            *(f"--cap-drop={name}" for name in wanted.get("cap_drop", [])),
            *(f"--security-opt={option.replace(':true', '')}" for option in wanted.get("security_opt", [])),
            *(f"--volume={self._volume(volume)}" for volume in wanted.get("volumes", [])),
            *(["--shm-size", wanted["shm_size"]] if "shm_size" in wanted else []),
            *(["--workdir", wanted["working_dir"]] if "working_dir" in wanted else []),
            *(["--entrypoint", wanted["entrypoint"][0]] if "entrypoint" in wanted else []),
            *(["--detach"] if detach else ["--rm"]), wanted["image"], *(arguments or wanted.get("command", [])),
        ]  # fmt: skip
        return subprocess.run(line, capture_output=True, text=True, check=detach)

    def agft(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """`docker/agft ...`: the terminal's service, on a host that is no node of the cluster."""
        done = self.run("agft", "agft", *arguments, detach=False)
        assert done.returncode == 0 or not check, f"agft {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def wait_healthy(self, host: str, service: str) -> None:
        """Until the service's own health check passes in its container."""
        test = self.services[service]["healthcheck"]["test"][1:]
        deadline = time.monotonic() + HEALTHY_SECONDS
        while True:
            done = subprocess.run(
                [*PODMAN, "exec", self.container(host), *test], capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return
            said = f"{host}: {done.stdout}{done.stderr}\n"
            assert "container state improper" not in done.stderr, said + self.logs(host)
            assert time.monotonic() < deadline, said + self.logs(host)
            time.sleep(2)

    def logs(self, host: str) -> str:
        """The end of what a host's container printed."""
        done = subprocess.run([*PODMAN, "logs", "--tail", "40", self.container(host)], capture_output=True, text=True,
                              check=False)  # fmt: skip
        return done.stdout + done.stderr

    def _volume(self, volume: str) -> str:
        source, rest = volume.split(":", 1)
        if source.startswith((".", "/")):
            return f"{(FILE.parent / source).resolve()}:{rest}"
        self.volumes.add(f"{self.hosts.tag}-{source}")
        return f"{self.hosts.tag}-{source}:{rest}"


@contextmanager
def containers(variables: Mapping[str, str]) -> Iterator[Stack]:
    """Start what stands in the file, each service when those that it waits for are healthy; and take it all away."""
    found = services(variables)
    standing = instances(found)
    with hosts([*standing, "agft"]) as network:
        stack = Stack(network, found, Path(tempfile.mkdtemp(prefix="agft-compose-")))
        try:
            for host, service in standing.items():
                for needed in found[service].get("depends_on", {}):
                    for other in (name for name, kind in standing.items() if kind == needed):
                        stack.wait_healthy(other, needed)
                stack.run(host, service)
            for host, service in standing.items():
                stack.wait_healthy(host, service)
            yield stack
        finally:
            for host in [*standing, "agft"]:
                subprocess.run([*PODMAN, "rm", "--force", "--time", "3", "--volumes", stack.container(host)],
                               capture_output=True, check=False)  # fmt: skip
            for volume in stack.volumes:
                subprocess.run([*PODMAN, "volume", "rm", "--force", volume], capture_output=True, check=False)
            shutil.rmtree(stack.folder)
