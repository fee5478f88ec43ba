"""`agft stack up`, `status`, `env`, `down`: the embedded services."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from study.cli.edge import FILE, database, home, json_option, keep_what_is_there, print_json, replace_option, tell
from study.console import say
from study.errors import SERVICE_ERRORS, UserError

if TYPE_CHECKING:
    from infra.stack.stack import ServiceStatus

LOOPBACK = "127.0.0.1"
NOT_ENCRYPTED = (
    "{bind} is open to its network, to whoever has the credentials. Nothing is encrypted: who can listen on it "
    "can read MLflow's password and everything that is sent. Use a network that you trust, a VPN, or 127.0.0.1 behind "
    "`ssh -L`."
)


@click.group()
def stack() -> None:
    """The embedded services: S3 storage (SeaweedFS), the MLflow server and on request PostgreSQL."""


@stack.command("up")
@click.option("--bind", metavar="ADDR", help="Listen on this address of the machine instead of loopback, for a "
              "LAN, from now on; 127.0.0.1 goes back.")  # fmt: skip
@click.option("--postgres/--sqlite", default=None, help="Where studies and MLflow keep their records, from now on. "
              "PostgreSQL comes with agft-study[postgres].  [default: as before; at first SQLite]")  # fmt: skip
@json_option
def stack_up(bind: str | None, postgres: bool | None, as_json: bool) -> None:
    """Start what is not running, and again what dies later; safe to repeat."""
    from infra.stack.embedded import settings_of
    from infra.stack.stack import up

    before = settings_of(home())
    services = up(home(), bind=bind, postgres=postgres, kept_up=True)
    settings = settings_of(home())
    if as_json:
        print_json({"s3": services.s3_endpoint, "bucket": services.bucket, "mlflow": services.mlflow_uri,
                    "mlflow_user": services.mlflow_username, "postgres": settings.postgres, "bind": settings.bind,
                    "credentials": str(home() / "secrets.json")})  # fmt: skip
        return
    click.echo(f"S3      {services.s3_endpoint}  bucket {services.bucket}")
    click.echo(f"MLflow  {services.mlflow_uri}  user {services.mlflow_username}")
    if settings.postgres:
        from infra.stack.embedded import database_address
        from infra.stack.postgres import DATABASES, USER

        place = (database_address(home()) or "").rpartition("@")[2]
        click.echo(f"SQL     {place.partition('/')[0]}  user {USER}, databases {', '.join(DATABASES)}")
    click.echo(f"credentials: {home() / 'secrets.json'}")
    if settings.postgres != before.postgres:
        click.echo("studies and MLflow records of before stay where they were, and are not shown here: move "
                   "studies with `agft archive` and `agft restore`")  # fmt: skip
    if settings.bind != LOOPBACK:
        say(NOT_ENCRYPTED.format(bind=settings.bind))


@stack.command("status")
@json_option
def stack_status(as_json: bool) -> None:
    """Show which services run, their versions, memory, disk use and logs."""
    from infra.stack.stack import kept_up
    from infra.stack.stack import status as services_status

    found = services_status(home())
    if as_json:
        rows = [{**vars(service), "log": str(service.log), "folder": str(service.folder)} for service in found]
        print_json(rows)
        return
    if not found:
        click.echo(f"nothing was ever started under {home()}")
        return
    for service in found:
        click.echo(_line(service))
    free = shutil.disk_usage(home()).free
    running = any(service.pid for service in found)
    word = "is started again" if kept_up(home()) else "stays down until the next `agft stack up`"
    click.echo(f"{free / 1e9:.1f} GB free on the disk of {home()}" + (f"; what dies {word}" if running else ""))


@stack.command("env")
@click.argument("file", type=FILE)
@click.option("--cluster", is_flag=True, help="Also what Ray's nodes need where `ray start` runs, and terminals that "
              "submit to them: the token, settings, the dashboard's address.")  # fmt: skip
@click.option("--head", metavar="HOST", help="With --cluster: the head's name or address.  [default: where S3 is]")
@replace_option
@json_option
def stack_env(file: Path, cluster: bool, head: str | None, replace: bool, as_json: bool) -> None:
    """Write the variables that other terminals and machines need to FILE (mode 0600): addresses and secrets."""
    from urllib.parse import urlsplit

    from infra.stack.embedded import database_address, settings_of
    from infra.stack.processes import write_private
    from infra.stack.stack import up

    if head and not cluster:
        raise UserError("--head: goes with --cluster")
    keep_what_is_there(file, "a file of `agft stack env`", _is_env, replace=replace)
    variables = up(home(), kept_up=True).environment()
    if database := database_address(home()):
        variables["AGFT_STUDY_DB"] = database
    lacking = []
    if settings_of(home()).bind == LOOPBACK:
        lacking.append("for this machine only: `agft stack up --bind ADDR` makes other machines reach it")
    if cluster:
        from infra.cluster.cluster import cluster_environment

        host = head or urlsplit(variables["AWS_ENDPOINT_URL"]).hostname
        variables |= cluster_environment(home()) | {"RAY_API_SERVER_ADDRESS": f"http://{host}:8265"}
        if not database:
            lacking.append("studies are in SQLite, a file of this machine: nodes on other machines need "
                           "`agft stack up --postgres`, or AGFT_STUDY_DB with a server of yours")  # fmt: skip
    text = "".join(f"{name}={value}\n" for name, value in sorted(variables.items()))
    try:
        write_private(file.absolute(), text)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
    use = f"set -a; . {file.absolute()}; set +a"
    tell(f"{file}: {', '.join(sorted(variables))}; use it by: {use}", as_json=as_json, file=str(file),
         variables=sorted(variables), lacking=lacking, use=use)  # fmt: skip
    for line in lacking:
        say(line)


def _is_env(path: Path) -> bool:
    """Whether every line of a file sets a variable, one of them the address of S3."""
    lines = path.read_text(errors="replace").splitlines()
    names = [line.partition("=")[0] for line in lines]
    return "AWS_ENDPOINT_URL" in names and all("=" in line for line in lines) and all(map(str.isidentifier, names))


@stack.command("down")
@click.option("--force", is_flag=True, help="Also beside a study that runs: it waits for them, and pauses in the end.")
@json_option
def stack_down(force: bool, as_json: bool) -> None:
    """Stop the services; data stays. Refused while a study of this home runs."""
    from infra.stack.stack import down

    if not force and (driven := _driven()):
        named = f"study {driven[0]!r} runs" if len(driven) == 1 else f"studies {', '.join(map(repr, driven))} run"
        pause = "; ".join(f"agft pause {name}" for name in driven)
        raise UserError(f"{named} on these services; nothing was stopped. First: {pause}. Or: agft stack down --force")
    count = down(home())
    tell(f"stopped {count} processes; data stays in {home()}", as_json=as_json, processes=count)


def _driven() -> list[str]:
    """Studies of this home's database that somebody drives; none where it cannot be asked, which is said."""
    from sqlalchemy.exc import SQLAlchemyError

    from study.store.store import driven_studies

    unknown: tuple[type[Exception], ...] = (*SERVICE_ERRORS, SQLAlchemyError)
    try:
        return driven_studies(database())
    except unknown as error:
        say(f"whether a study runs is not known: {' '.join(str(error).split())[:200]}")
        return []


def _line(service: ServiceStatus) -> str:
    detail = f"\n{'':<11}{service.detail}" if service.detail else ""
    return (
        f"{service.name:<10} {service.version:<7} {service.state:<8} {service.url}  pid {service.pid or '-'}  "
        f"memory {service.memory_bytes / 1e6:.0f} MB  disk {service.disk_bytes / 1e6:.1f} MB  log {service.log}{detail}"
    )
