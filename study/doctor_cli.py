"""`agft doctor`: what a study leans on, checked. Light to import."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from infra.finding import Finding

__all__ = ["attach_doctor"]

FILE = click.Path(dir_okay=False, path_type=Path)
CHECKS = "doctor-"  # names of the threads of checks
MARKS = {"ok": "[green]ok[/]", "warning": "[yellow]warning[/]", "failed": "[bold red]FAILED[/]", "skipped": "-"}


def attach_doctor(main: click.Group, answering: Callable[..., Any], home: Callable[[], Path]) -> None:
    """Add the command. `answering` turns errors into exit codes, `home` says where things are kept."""

    @main.command()
    @click.argument("study_file", metavar="[FILE]", required=False, type=FILE)
    @click.option("--address", help="A cluster's dashboard, http://HEAD:8265, to be checked by a job on it.  [default: "
                  "RAY_API_SERVER_ADDRESS; RAY_ADDRESS]")  # fmt: skip
    @click.option("--json", "as_json", is_flag=True, help="For machines.")
    @answering
    def doctor(study_file: Path | None, address: str | None, as_json: bool) -> None:
        """Check services, database, machine and every Ray node; with a study FILE, its data, weights and GPUs, too.

        Starts and changes nothing. Exit code 1 if something failed; warnings are allowed.
        """
        from study.doctor import examine, exit_code
        from study.doctor_study import needs_of

        needs = needs_of(study_file) if study_file else None
        began = time.monotonic()
        with contextlib.redirect_stdout(sys.stderr):  # Ray says what it thinks where the findings go
            found = examine(home(), needs, address=address)
        if as_json:
            click.echo(json.dumps([finding.as_json() for finding in found], indent=2))
        else:
            _show(found, time.monotonic() - began)
        if any(thread.name.startswith(CHECKS) for thread in threading.enumerate()):
            sys.stdout.flush()
            os._exit(exit_code(found))  # a check hangs, and so would what Python and Ray do at an ordinary end
        sys.exit(exit_code(found))


def _show(found: Sequence[Finding], seconds: float) -> None:
    from rich.markup import escape
    from rich.table import Table

    from study.console import wide_console

    console = wide_console()
    places = list(dict.fromkeys(finding.where for finding in found))
    for place in places:
        rows = [finding for finding in found if finding.where == place]
        table = Table(title=place, title_justify="left", show_lines=False)
        for name in ("check", "", "found"):
            table.add_column(name, overflow="fold")
        for row in rows:
            remedy = f"\n[bold]-> {escape(row.remedy)}[/]" if row.remedy else ""
            table.add_row(escape(row.check), MARKS[row.state], escape(row.detail) + remedy)
        console.print(table)
    count = {state: sum(finding.state == state for finding in found) for state in MARKS}
    console.print(f"{len(found)} findings in {seconds:.1f} s: {count['failed']} failed, {count['warning']} warnings")
