"""The embedded services of a laptop: SeaweedFS S3 and MLflow, brought up, looked at and taken down.

Everything lives under one home (mode 0700): `secrets.json` (made once), `state.json` (process ids and ports),
`seaweedfs/`, `mlflow/`, `logs/`. Commands on one home exclude each other by a file lock.
"""

from __future__ import annotations

import json
import secrets as random_secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra import mlflow_server, processes, seaweed
from infra.errors import ServiceError
from infra.services import DEFAULT_BUCKET, DEFAULT_REGION, Services

__all__ = ["Service", "ServiceStatus", "down", "status", "up"]

READY_TIMEOUT_SECONDS = 90.0
PATIENCE_SECONDS = 15.0  # a live process that does not answer for so long is replaced
PORT_PATIENCE_SECONDS = 5.0  # a killed process may hold its ports a little longer
POLL_SECONDS = 0.2
ATTEMPTS = 2
GRACE_SECONDS = {"mlflow": 10.0, "seaweedfs": 3.0}  # see `seaweed` for why its end may be short


@dataclass(frozen=True)
class Service:
    """How one service is started and asked. `probe(create)` raises `ServiceError` while the service is not usable."""

    name: str
    ports: Mapping[str, int]
    needs: str  # address that is baked into its environment: when it changes, the service must start again
    url: str
    command: Callable[[], list[str]]
    environment: Callable[[], dict[str, str]]
    configure: Callable[[], None]
    probe: Callable[[bool], None]


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


def up(home: Path) -> Services:
    """Start what is not running, repair what is half dead, and return the addresses once both answer.

    Safe to call again and from several processes at once. Raises `UserError` when a program is not installed,
    `ServiceError` (with the log's end) when a service does not become ready within 90 s.
    """
    home = _prepare(home)
    with processes.exclusive(home / "stack.lock"):
        kept = _secrets(home)
        for attempt in range(1, ATTEMPTS + 1):
            services = _services(home, kept, _ports(home))
            dead = [service for service in services if not _healthy(home, service)]
            try:
                _start(home, dead)
                return _addresses(home, kept, services)
            except ServiceError:
                for service in dead:
                    _stop(home, service.name)
                if attempt == ATTEMPTS:
                    raise
                _write_state(home, {service.name: {} for service in dead})  # forget ports: one may have been taken
    raise AssertionError("unreachable")


def status(home: Path) -> list[ServiceStatus]:
    """What runs now, without changing anything; empty when nothing was ever started here."""
    home = home.expanduser().resolve()
    if not (home / "secrets.json").exists():
        return []
    state = _read_json(home / "state.json")
    found = []
    for service in _services(home, _secrets(home), _ports(home, choose=False)):
        group = processes.members(_mark(home, service.name))
        pid = state.get(service.name, {}).get("pid") if group else None
        problem = ""
        if group:
            try:
                service.probe(False)
            except ServiceError as error:
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
            )
        )
    return found


def down(home: Path) -> int:
    """End every process of the services, also those of a lost state file. Returns how many there were."""
    home = home.expanduser().resolve()
    if not home.exists():
        return 0
    with processes.exclusive(home / "stack.lock"):
        return sum(_stop(home, name) for name in GRACE_SECONDS)


def _stop(home: Path, name: str) -> int:
    """End the processes of one service; returns how many there were."""
    ended = processes.terminate(_mark(home, name), grace_seconds=GRACE_SECONDS[name])
    seaweed.remove_sockets(_read_json(home / "state.json").get(name, {}).get("ports", {}))
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


def _secrets(home: Path) -> dict[str, str]:
    """The kept credentials, completed with new random ones where a name is missing."""
    path = home / "secrets.json"
    kept: dict[str, str] = _read_json(path)
    missing = [name for name in seaweed.new_secrets_needed + mlflow_server.new_secrets_needed if name not in kept]
    if missing:
        kept |= {name: random_secrets.token_hex(10 if name == "access_key" else 24) for name in missing}
        processes.write_private(path, json.dumps(kept, indent=1))
    return kept


def _read_json(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ServiceError(f"{path} is damaged ({error}); run `agft stack down`, remove it and try again") from error
    if not isinstance(content, dict):
        raise ServiceError(f"{path} is damaged: not a JSON object; remove it and try again")
    return content


def _write_state(home: Path, change: Mapping[str, Mapping[str, Any]]) -> None:
    state = _read_json(home / "state.json")
    processes.write_private(home / "state.json", json.dumps(state | dict(change), indent=1))


def _ports(home: Path, *, choose: bool = True) -> dict[str, dict[str, int]]:
    """Ports by service: the remembered ones while the service runs or nobody else took them, else new ones."""
    state = _read_json(home / "state.json")
    ports: dict[str, dict[str, int]] = {}
    for name, wanted in (("seaweedfs", seaweed.PORT_NAMES), ("mlflow", ("http",))):
        entry = state.get(name, {})
        known = {port: int(number) for port, number in entry.get("ports", {}).items()}
        ours = bool(processes.members(_mark(home, name)))
        free = ours or processes.ports_free(list(known.values()), patience_seconds=PORT_PATIENCE_SECONDS)
        usable = free and set(known) == set(wanted)
        if choose and not usable:
            known = dict(zip(wanted, processes.free_ports(len(wanted)), strict=True))
        ports[name] = known or dict.fromkeys(wanted, 0)
    return ports


def _services(home: Path, kept: Mapping[str, str], ports: Mapping[str, Mapping[str, int]]) -> list[Service]:
    s3_ports, port = ports["seaweedfs"], ports["mlflow"]["http"]
    s3_folder, mlflow_folder = home / "seaweedfs", home / "mlflow"
    s3_endpoint = seaweed.endpoint(s3_ports)
    return [
        Service(
            name="seaweedfs",
            ports=s3_ports,
            needs="",
            url=s3_endpoint,
            command=lambda: seaweed.command(s3_folder, s3_ports),
            environment=seaweed.environment,
            configure=lambda: seaweed.configure(s3_folder, kept),
            probe=lambda create: seaweed.probe(s3_ports, kept, create=create),
        ),
        Service(
            name="mlflow",
            ports=ports["mlflow"],
            needs=s3_endpoint,
            url=mlflow_server.address(port),
            command=lambda: mlflow_server.command(mlflow_folder, port),
            environment=lambda: mlflow_server.environment(mlflow_folder, kept, s3_endpoint),
            configure=lambda: mlflow_server.configure(mlflow_folder),
            probe=lambda _create: mlflow_server.probe(port, kept),
        ),
    ]


def _healthy(home: Path, service: Service) -> bool:
    """Whether the recorded process lives, was started for today's addresses, and answers an authorised request."""
    entry = _read_json(home / "state.json").get(service.name, {})
    started = (int(entry["pid"]), float(entry["started"])) if "pid" in entry else None
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
            folder=home / service.name,
            log=_log(home, service.name),
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


def _addresses(home: Path, kept: Mapping[str, str], services: list[Service]) -> Services:
    url = {service.name: service.url for service in services}
    return Services(
        s3_endpoint=url["seaweedfs"],
        region=DEFAULT_REGION,
        access_key=kept["access_key"],
        secret_key=kept["secret_key"],
        bucket=DEFAULT_BUCKET,
        mlflow_uri=url["mlflow"],
        mlflow_username=mlflow_server.USERNAME,
        mlflow_password=kept["mlflow_password"],
        home=home,
    )
