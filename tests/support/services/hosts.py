"""Hosts of our own on this machine: network namespaces on one bridge, each with an address and a cable to pull.

Needs root and Debian's iproute2. Names are known in every host, as in a network with a name server.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

NAMES = Path("/etc/netns")  # `ip netns exec` lays what it finds here over /etc


def why_not() -> str:
    """Empty when hosts can be made here, else the reason."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None:
        return "network namespaces need Debian's iproute2"
    tag = f"agftp{secrets.token_hex(2)}"
    made = subprocess.run(["ip", "link", "add", tag, "type", "bridge"], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"no bridge can be made here: {made.stderr.strip()}"
    subprocess.run(["ip", "link", "del", tag], check=True)
    return ""


@dataclass
class Hosts:
    """Hosts by name. This machine itself is on their network, at `.1`."""

    tag: str
    network: str  # its first three numbers
    addresses: dict[str, str] = field(default_factory=dict)

    def namespace(self, name: str) -> str:
        """Of a host, for `ip netns`."""
        return f"{self.tag}-{name}"

    def command(self, name: str, arguments: Sequence[str]) -> list[str]:
        """`arguments` as a command that runs in a host."""
        return ["ip", "netns", "exec", self.namespace(name), *arguments]

    def cut(self, name: str) -> None:
        """Pull the host's cable: it sends and hears nothing."""
        _ip("link", "set", self._cable(name), "down")

    def restore(self, name: str) -> None:
        """Plug it in again."""
        _ip("link", "set", self._cable(name), "up")

    def _cable(self, name: str) -> str:
        return f"{self.tag}{list(self.addresses).index(name)}"

    def _add(self, name: str) -> None:
        namespace, cable = self.namespace(name), self._cable(name)
        _ip("netns", "add", namespace)
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("link", "set", cable, "master", self.tag, "up")
        inside = ("-n", namespace)
        _ip(*inside, "address", "add", f"{self.addresses[name]}/24", "dev", "eth0")
        _ip(*inside, "link", "set", "eth0", "up")
        _ip(*inside, "link", "set", "lo", "up")
        _ip(*inside, "route", "add", "default", "via", f"{self.network}.1")
        folder = NAMES / namespace
        folder.mkdir(parents=True)
        lines = [f"{address} {other}" for other, address in self.addresses.items()]
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *lines, ""]))


@contextmanager
def hosts(names: Sequence[str]) -> Iterator[Hosts]:
    """Make hosts of these names, and take them away with their processes."""
    made = Hosts(f"agft{secrets.token_hex(2)}", f"10.{random.randrange(64, 128)}.{random.randrange(1, 255)}")
    made.addresses = {name: f"{made.network}.{place}" for place, name in enumerate(names, start=2)}
    _ip("link", "add", made.tag, "type", "bridge")
    try:
        _ip("address", "add", f"{made.network}.1/24", "dev", made.tag)
        _ip("link", "set", made.tag, "up")
        for name in names:
            made._add(name)
        yield made
    finally:
        for name in names:
            namespace = made.namespace(name)
            left = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
            for process in left.stdout.split():
                subprocess.run(["kill", "-KILL", process], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", namespace], check=False, capture_output=True)
            shutil.rmtree(NAMES / namespace, ignore_errors=True)
        subprocess.run(["ip", "link", "del", made.tag], check=False)


def _ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"ip {' '.join(arguments)}: {done.stderr}"
