"""`agft stack up`, `status`, `env`, `down`: the embedded services."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import click

from study.cli.edge import FILE, home, json_option, keep_what_is_there, print_json, replace_option
from study.console import say
from study.errors import UserError

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
def stack_up(bind: str | None, postgres: bool | None) -> None:
    """Start what is not running, and again what dies later; safe to repeat."""
    from infra.stack.embedded import settings_of
    from infra.stack.stack import up

    before = settings_of(home())
    services = up(home(), bind=bind, postgres=postgres, kept_up=True)
    settings = settings_of(home())
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
@replace_option
def stack_env(file: Path, replace: bool) -> None:
    """Write the variables that other terminals and machines need to FILE (mode 0600): addresses and secrets."""
    from infra.stack.embedded import database_address
    from infra.stack.processes import write_private
    from infra.stack.stack import up

    keep_what_is_there(file, "a file of `agft stack env`", _is_env, replace=replace)
    variables = up(home(), kept_up=True).environment()
    if database := database_address(home()):
        variables["AGFT_STUDY_DB"] = database
    text = "".join(f"{name}={value}\n" for name, value in sorted(variables.items()))
    try:
        write_private(file.absolute(), text)
    except OSError as error:
        raise UserError(f"{file}: cannot be written: {error.strerror}") from None
    click.echo(f"{file}: {', '.join(sorted(variables))}; use it by: set -a; . {file}; set +a")
    if "127.0.0.1" in variables["AWS_ENDPOINT_URL"]:
        say("for this machine only: `agft stack up --bind ADDR` makes other machines reach it")


def _is_env(path: Path) -> bool:
    """Whether every line of a file sets a variable, one of them the address of S3."""
    lines = path.read_text(errors="replace").splitlines()
    names = [line.partition("=")[0] for line in lines]
    return "AWS_ENDPOINT_URL" in names and all("=" in line for line in lines) and all(map(str.isidentifier, names))


@stack.command("down")
def stack_down() -> None:
    """Stop the services; data stays."""
    from infra.stack.stack import down

    click.echo(f"stopped {down(home())} processes; data stays in {home()}")


def _line(service: ServiceStatus) -> str:
    detail = f"\n{'':<11}{service.detail}" if service.detail else ""
    return (
        f"{service.name:<10} {service.version:<7} {service.state:<8} {service.url}  pid {service.pid or '-'}  "
        f"memory {service.memory_bytes / 1e6:.0f} MB  disk {service.disk_bytes / 1e6:.1f} MB  log {service.log}{detail}"
    )
