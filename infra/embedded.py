"""What the embedded services are made of: their credentials, and how each is configured, started and asked."""

from __future__ import annotations

import json
import secrets as random_secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from infra import mlflow_server, processes, seaweed
from infra.errors import ServiceError
from infra.services import DEFAULT_BUCKET, DEFAULT_REGION, Services

__all__ = ["Service", "addresses", "credentials", "definitions"]


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


def credentials(home: Path) -> dict[str, str]:
    """The kept credentials, completed with new random ones where a name is missing."""
    path = home / "secrets.json"
    kept: dict[str, str] = {}
    if path.exists():
        try:
            kept = dict(json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ServiceError(
                f"{path} is damaged ({error}): restore it, or run `agft stack down` and move {home} away"
            ) from error
    missing = [name for name in seaweed.SECRETS + mlflow_server.SECRETS if name not in kept]
    if missing:
        kept |= {name: random_secrets.token_hex(10 if name == "access_key" else 24) for name in missing}
        processes.write_private(path, json.dumps(kept, indent=1))
    return kept


def definitions(home: Path, kept: Mapping[str, str], ports: Mapping[str, Mapping[str, int]]) -> list[Service]:
    """The services in the order of their start, for these credentials and ports."""
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
            command=lambda: mlflow_server.command(port),
            environment=lambda: mlflow_server.environment(mlflow_folder, kept, s3_endpoint),
            configure=lambda: mlflow_server.configure(mlflow_folder),
            probe=lambda _create: mlflow_server.probe(port, kept),
        ),
    ]


def addresses(home: Path, kept: Mapping[str, str], services: Sequence[Service]) -> Services:
    """What users of the services need to know."""
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
