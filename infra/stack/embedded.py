"""What the embedded services are made of: settings, credentials, and how each is set up, started and asked."""

from __future__ import annotations

import ipaddress
import json
import secrets as random_secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil

from infra.errors import ServiceError, UserError
from infra.services import DEFAULT_BUCKET, DEFAULT_REGION, Services
from infra.stack import mlflow_server, postgres, processes, seaweed
from infra.stack.postgres_programs import Account, account

LOOPBACK = "127.0.0.1"
PORT_NAMES = {"postgres": ("sql",), "seaweedfs": seaweed.PORT_NAMES, "mlflow": ("http",)}
NAMES = tuple(PORT_NAMES)  # in the order of their start


@dataclass(frozen=True)
class Settings:
    """What a person chose about this home's services; kept in `stack.json`."""

    bind: str = LOOPBACK  # where S3, MLflow and PostgreSQL listen; everything else stays on loopback
    postgres: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The services that run under these settings."""
        return tuple(name for name in NAMES if name != "postgres" or self.postgres)


@dataclass(frozen=True)
class Service:
    """How one service is started and asked. `probe(create)` raises `ServiceError` while the service is not usable."""

    name: str
    ports: Mapping[str, int]
    needs: str  # what is baked into its start: when it changes, the service must start again
    url: str
    folder: Path
    command: Callable[[], list[str]]
    environment: Callable[[], dict[str, str]]
    configure: Callable[[], None]
    probe: Callable[[bool], None]
    version: Callable[[], str]
    account: Account | None = None  # whom it runs as, if not us


def settings_of(home: Path) -> Settings:
    """The kept settings; `ServiceError` for a damaged file."""
    path = home / "stack.json"
    try:
        kept = json.loads(path.read_text())
        return Settings(bind=str(kept["bind"]), postgres=bool(kept["postgres"]))
    except FileNotFoundError:
        return Settings()
    except (ValueError, TypeError, KeyError) as error:
        raise ServiceError(
            f"{path} is damaged ({error}): remove it and say again what `agft stack up` should do"
        ) from None


def with_settings(home: Path, *, bind: str | None, use_postgres: bool | None) -> Settings:
    """The kept settings, changed where something is given, and kept again.

    `UserError` for an address that is not one of this machine's, and for PostgreSQL where it is not installed.
    """
    settings = settings_of(home)
    if bind is not None:
        settings = replace(settings, bind=_own_address(bind))
    if use_postgres is not None:
        settings = replace(settings, postgres=use_postgres)
    if settings.postgres:
        postgres.check(postgres.folder_of(home))
    if settings != settings_of(home):
        processes.write_private(home / "stack.json", json.dumps(asdict(settings), indent=1))
    return settings


def _own_address(text: str) -> str:
    ours = sorted(
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family.name == "AF_INET" and entry.address != LOOPBACK
    )
    rule = f"expected 127.0.0.1 or an address of this machine: {', '.join(ours) or 'it has no other'}"
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        raise UserError(f"--bind: {text!r}: not an IPv4 address; {rule}") from None
    if address.is_unspecified:
        raise UserError(f"--bind: {text}: every interface is more than was meant, and no address to give away; {rule}")
    if str(address) not in (LOOPBACK, *ours):
        raise UserError(f"--bind: {text}: not here; {rule}")
    return str(address)


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
    names = seaweed.SECRETS + mlflow_server.SECRETS + postgres.SECRETS
    missing = [name for name in names if name not in kept]
    if missing:
        kept |= {name: random_secrets.token_hex(10 if name == "access_key" else 24) for name in missing}
        processes.write_private(path, json.dumps(kept, indent=1))
    return kept


def definitions(
    home: Path, kept: Mapping[str, str], ports: Mapping[str, Mapping[str, int]], settings: Settings
) -> list[Service]:
    """The services in the order of their start, for these credentials, ports and settings."""
    bind = settings.bind
    s3_folder, mlflow_folder = home / "seaweedfs", home / "mlflow"
    s3_ports, http = ports["seaweedfs"], ports["mlflow"]["http"]
    s3_endpoint = seaweed.endpoint(s3_ports, bind)
    runs, users = "sqlite:///mlflow.db", "sqlite:///auth.db"
    found = []
    if settings.postgres:
        sql, folder = ports["postgres"]["sql"], postgres.folder_of(home)
        runs, users = (postgres.address(sql, bind, name) for name in ("mlflow", "mlflow_auth"))
        found.append(
            Service(
                name="postgres",
                ports=ports["postgres"],
                needs=bind,
                url=f"postgresql://{bind}:{sql}",
                folder=folder,
                command=lambda: postgres.command(folder, sql, bind),
                environment=postgres.environment,
                configure=lambda: postgres.configure(folder, kept, bind),
                probe=lambda create: postgres.probe(folder, sql, kept, bind, create=create),
                version=lambda: postgres.version(folder),
                account=account(folder),
            )
        )
    found += [
        Service(
            name="seaweedfs",
            ports=s3_ports,
            needs=bind,
            url=s3_endpoint,
            folder=s3_folder,
            command=lambda: seaweed.command(s3_folder, s3_ports, bind),
            environment=seaweed.environment,
            configure=lambda: seaweed.configure(s3_folder, kept),
            probe=lambda create: seaweed.probe(s3_ports, kept, create=create, bind=bind),
            version=seaweed.version,
        ),
        Service(
            name="mlflow",
            ports=ports["mlflow"],
            needs=f"{s3_endpoint} {runs}",
            url=mlflow_server.address(http, bind),
            folder=mlflow_folder,
            command=lambda: mlflow_server.command(http, bind=bind, runs=runs),
            environment=lambda: mlflow_server.environment(mlflow_folder, kept, s3_endpoint),
            configure=lambda: mlflow_server.configure(mlflow_folder, users),
            probe=lambda _create: mlflow_server.probe(http, kept, bind),
            version=mlflow_server.version,
        ),
    ]
    return found


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


def database_address(home: Path) -> str | None:
    """The study database in the embedded PostgreSQL, with its password; None where studies are in SQLite.

    `ServiceError` when it was chosen and does not run: commands that only look must not start services.
    """
    settings = settings_of(home)
    if not settings.postgres:
        return None
    entry = processes.kept_state(home / "state.json").get("postgres", {})
    started = (int(entry["pid"]), str(entry["started"])) if "pid" in entry else None
    if not processes.alive(started):
        raise ServiceError("studies are in the embedded PostgreSQL, which does not run: agft stack up")
    password = credentials(home)["postgres_password"]
    return postgres.address(entry["ports"]["sql"], settings.bind, postgres.DATABASES[0], password=password)
