"""The embedded services of a laptop: SeaweedFS S3, MLflow and on request PostgreSQL: up, looked at and down.

Everything lives under one home (mode 0700): `secrets.json` (made once), `stack.json` (what was chosen), `state.json`
(process ids and ports), `seaweedfs/`, `mlflow/`, `postgres/`, `logs/`. Commands on one home exclude each other by a
file lock. What dies is started again by a process of its own (`keeper`), unless `up` is told not to have one.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from subprocess import CalledProcessError
from typing import Any

from infra.errors import ServiceError, UserError
from infra.services import Services
from infra.stack import processes, seaweed
from infra.stack.embedded import (  # fmt: skip
    NAMES,
    PORT_NAMES,
    Service,
    Settings,
    addresses,
    credentials,
    definitions,
    settings_of,
    with_settings,
)

READY_TIMEOUT_SECONDS = 180.0  # some 10 s on an idle machine; MLflow's start is 9 s of pure CPU
PATIENCE_SECONDS = 30.0  # a live process that does not answer for so long is replaced
PORT_PATIENCE_SECONDS = 5.0  # a killed process may hold its ports a little longer
POLL_SECONDS = 0.2
ATTEMPTS = 2
GRACE_SECONDS = {"mlflow": 10.0, "seaweedfs": 3.0, "postgres": 30.0}  # see `seaweed` for why its end may be short
KEEPER = "keeper"


@dataclass(frozen=True)
class ServiceStatus:
    """One line of `agft stack status`. `state` is running, stopped or broken; `detail` says why it is broken."""

    name: str
    state: str
    url: str
    pid: int | None
    memory_bytes: int
    log: Path
    detail: str = ""
    version: str = ""
    disk_bytes: int = 0
    folder: Path = Path()


def up(home: Path, *, bind: str | None = None, postgres: bool | None = None, kept_up: bool = False) -> Services:
    """Start what is not running, repair what is half dead, and return the addresses once all answer.

    `bind` and `postgres` change what this home's services are, from now on; None leaves it. With `kept_up` a process
    starts again what dies later. Safe to call again and from several processes at once. Raises `UserError` when a
    program is not installed, `ServiceError` (with the log's end) when a service does not become ready within 180 s.
    """
    home = _prepare(home)
    with processes.exclusive(home / "stack.lock"):
        settings = with_settings(home, bind=bind, use_postgres=postgres)
        kept = credentials(home)
        for name in set(NAMES) - set(settings.names):
            _stop(home, name)
            _write_state(home, {name: {}})
        for attempt in range(1, ATTEMPTS + 1):
            services = definitions(home, kept, _ports(home, settings), settings)
            dead = [service for service in services if not _healthy(home, service)]
            try:
                _start(home, dead)
                if kept_up:
                    _keep_up(home)
                return addresses(home, kept, services)
            except UserError:
                for service in dead:
                    _stop(home, service.name)
                raise
            except ServiceError:
                for service in dead:
                    _stop(home, service.name)
                ports = [port for service in dead for port in service.ports.values()]
                taken = not processes.ports_free(ports, host=settings.bind)
                if attempt == ATTEMPTS or not taken:
                    raise
                _write_state(home, {service.name: {} for service in dead})  # choose other ports
    raise AssertionError("unreachable")


def renew(home: Path, name: str) -> None:
    """End one service and start it at the same addresses. Raises `ServiceError` when it does not become ready."""
    with processes.exclusive(home / "stack.lock"):
        settings = settings_of(home)
        services = definitions(home, credentials(home), _ports(home, settings), settings)
        _start(home, [service for service in services if service.name == name])


def status(home: Path) -> list[ServiceStatus]:
    """What runs now, without changing anything; empty when nothing was ever started here."""
    home = home.expanduser().resolve()
    if not (home / "secrets.json").exists():
        return []
    state, settings = _state(home), settings_of(home)
    found = []
    for service in definitions(home, credentials(home), _ports(home, settings, choose=False), settings):
        group = processes.members(_mark(home, service.name))
        pid = state.get(service.name, {}).get("pid") if group else None
        problem = ""
        if group:
            try:
                service.probe(False)
            except (ServiceError, UserError) as error:
                problem = str(error)
        found.append(
            ServiceStatus(
                name=service.name,
                state="stopped" if not group else "broken" if problem else "running",
                url=service.url,
                pid=pid,
                memory_bytes=processes.memory_bytes(group),
                log=_log(home, service.name),
                detail=problem,
                version=_version(service),
                disk_bytes=_disk_bytes(service.folder),
                folder=service.folder,
            )
        )
    return found


def down(home: Path) -> int:
    """End every process of the services, also those of a lost state file. Returns how many there were."""
    home = home.expanduser().resolve()
    if not home.exists():
        return 0
    processes.terminate(_mark(home, KEEPER), grace_seconds=1.0)  # it may be starting something, under the lock
    with processes.exclusive(home / "stack.lock"):
        processes.terminate(_mark(home, KEEPER), grace_seconds=1.0)
        return sum(_stop(home, name) for name in reversed(NAMES))


def kept_up(home: Path) -> bool:
    """Whether a process starts again what dies."""
    return bool(processes.members(_mark(home.expanduser().resolve(), KEEPER)))


def ports_of(home: Path) -> dict[str, dict[str, int]]:
    """The ports that the services have, or had; 0 where none was ever chosen."""
    return _ports(home, settings_of(home), choose=False)


def _keep_up(home: Path) -> None:
    if not processes.members(_mark(home, KEEPER)):
        command = [sys.executable, "-m", "infra.stack.keeper", str(home)]
        environment = processes.own_environment("AWS_", "MLFLOW_", "RAY_")
        environment["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        processes.spawn(command, mark=_mark(home, KEEPER), environment=environment, folder=home, log=_log(home, KEEPER))


def _version(service: Service) -> str:
    try:
        return service.version()
    except (OSError, UserError, ServiceError, CalledProcessError):
        return "?"  # not installed any more: `detail` says so once it is to be started


def _disk_bytes(folder: Path) -> int:
    """What the files below `folder` take on the disk; those that come and go meanwhile are left out."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_blocks * 512
    return total


def _stop(home: Path, name: str) -> int:
    """End the processes of one service; returns how many there were."""
    open_sockets = processes.unix_sockets(processes.members(_mark(home, name)))
    first = signal.SIGINT if name == "postgres" else signal.SIGTERM  # whose TERM waits until every client has gone
    ended = processes.terminate(_mark(home, name), grace_seconds=GRACE_SECONDS[name], first=first)
    for path in {*open_sockets, *seaweed.sockets(_state(home).get(name, {}).get("ports", {}))}:
        if path.is_socket() and path.stat().st_uid == os.getuid():
            path.unlink(missing_ok=True)
    return ended


def _prepare(home: Path) -> Path:
    home = home.expanduser().resolve()
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    home.chmod(0o700)
    return home


def _mark(home: Path, name: str) -> str:
    return f"{home}:{name}"


def _log(home: Path, name: str) -> Path:
    return home / "logs" / f"{name}.log"


def _state(home: Path) -> dict[str, Any]:
    """Process ids and ports by service."""
    return processes.kept_state(home / "state.json")


def _write_state(home: Path, change: Mapping[str, Mapping[str, Any]]) -> None:
    processes.write_private(home / "state.json", json.dumps(_state(home) | dict(change), indent=1))


def _ports(home: Path, settings: Settings, *, choose: bool = True) -> dict[str, dict[str, int]]:
    """Ports by service: the remembered ones while the service runs or nobody else took them, else new ones."""
    state = _state(home)
    ports: dict[str, dict[str, int]] = {}
    for name in settings.names:
        wanted = PORT_NAMES[name]
        entry = state.get(name, {})
        known = {port: int(number) for port, number in entry.get("ports", {}).items()}
        ours = bool(processes.members(_mark(home, name)))
        free = ours or processes.ports_free(
            list(known.values()), patience_seconds=PORT_PATIENCE_SECONDS, host=settings.bind
        )
        usable = free and set(known) == set(wanted)
        if choose and not usable:
            known = dict(zip(wanted, processes.free_ports(len(wanted), host=settings.bind), strict=True))
        ports[name] = known or dict.fromkeys(wanted, 0)
    return ports


def _healthy(home: Path, service: Service) -> bool:
    """Whether the recorded process lives, was started for today's addresses, and answers an authorised request."""
    entry = _state(home).get(service.name, {})
    started = (int(entry["pid"]), str(entry["started"])) if "pid" in entry else None
    deadline = time.monotonic() + PATIENCE_SECONDS
    while processes.alive(started) and entry["needs"] == service.needs and entry["ports"] == service.ports:
        try:
            service.probe(True)
            return True
        except ServiceError:
            if time.monotonic() > deadline:
                return False
            time.sleep(POLL_SECONDS)
    return False


def _start(home: Path, services: list[Service]) -> None:
    """Start `services` side by side and wait for all; `ServiceError` with the log's end if one does not come up."""
    started: dict[str, processes.Started] = {}
    for service in services:
        _stop(home, service.name)
        service.configure()
        started[service.name] = processes.spawn(
            service.command(),
            mark=_mark(home, service.name),
            environment=service.environment(),
            folder=service.folder,
            log=_log(home, service.name),
            account=service.account,
        )
        pid, since = started[service.name]
        entry = {"pid": pid, "started": since, "ports": dict(service.ports), "needs": service.needs}
        _write_state(home, {service.name: entry})
    deadline = time.monotonic() + READY_TIMEOUT_SECONDS
    for service in services:
        log = _log(home, service.name)
        while True:
            living = processes.alive(started[service.name])
            try:
                service.probe(True)
                break
            except ServiceError as error:
                if living and time.monotonic() < deadline:
                    time.sleep(POLL_SECONDS)
                    continue
                reason = f"not ready after {READY_TIMEOUT_SECONDS:.0f} s: {error}" if living else "ended at once"
                end = processes.tail(log)
                raise ServiceError(f"{service.name} did not start ({reason}); the end of {log}:\n{end}") from error
