"""`agft status`, `logs`, `report`, `audit`, `ui`: a study seen from any terminal, wherever it runs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from study.cli.edge import PLACE, database, home, json_option, keep_what_is_there, print_json, replace_option, store_of
from study.console import say
from study.errors import UserError

if TYPE_CHECKING:
    import webbrowser

    from study.store.store import StudyStore

REFRESH_SECONDS = 3.0
PORT = 9466  # of `agft ui`


@click.command()
@click.argument("study", required=False)
@json_option
@click.option("--watch", is_flag=True, help="Again every 3 s, until Ctrl-C.")
def status(study: str | None, as_json: bool, watch: bool) -> None:
    """Show all studies, or one with its trials and attempts, wherever they run."""
    if as_json and watch:
        raise UserError("--watch: not with --json; ask again instead")
    if not watch:
        print_status(study, as_json=as_json)
        return
    try:
        while True:
            click.clear()
            _print_status_again(study)
            time.sleep(REFRESH_SECONDS)
    except KeyboardInterrupt:
        return


def _print_status_again(study: str | None) -> None:
    """The status, or that the database is away for now."""
    from study.store.database import away

    try:
        print_status(study, as_json=False)
    except Exception as error:
        if not (reason := away(error)):
            raise
        say(f"the study database does not answer ({reason}); trying again")


def print_status(study: str | None, *, as_json: bool) -> None:
    """All studies of the database, or one."""
    from study.cli.tables import advice, attempts_table, failure_lines, studies_table, trials_table
    from study.console import wide_console
    from study.results.status import study_status
    from study.store.database import engine_for, now
    from study.store.store import StudyStore, study_names

    url = database()
    names = [study] if study else study_names(url)
    with engine_for(url).connect() as connection:
        clock = now(connection)
    stores = [StudyStore(url, name) for name in names]
    rows = [(store.load(), store.trials(), store.signs()) for store in stores]
    statuses = [study_status(row, trials, clock, signs=signs) for row, trials, signs in rows]
    if as_json:
        print_json(statuses)
        return
    if not rows:
        click.echo("no studies yet; start one with `agft run FILE`, or `agft submit FILE` on a cluster")
        return
    console = wide_console()
    width = console.width if console.is_terminal else None
    console.print(studies_table(statuses, width=width))
    if not study:
        if silent := [each["study"] for each in statuses if each["state"] == "interrupted"]:
            console.print(f"interrupted: {', '.join(silent)}; `agft status STUDY` says what to do")
        return
    [(row, trials, signs)], [found] = rows, statuses
    live = found["state"] == "running"
    if row.goal:
        shown = signs if live else {}
        token = row.token if live else None
        console.print(trials_table(row.spec, trials, row.goal, token=token, signs=shown, width=width))
    if any(len(trial.attempts) > 1 for trial in trials):
        console.print(attempts_table(trials, row.token, clock, live=live))
    for line in failure_lines(trials):
        console.print(line, soft_wrap=True, markup=False)
    for text in (found["message"], advice(found)):
        if text:
            console.print(f"{found['state']}: {text}", soft_wrap=True)


@click.command()
@click.argument("study")
@click.option("-f", "--follow", is_flag=True, help="Go on until the study's driver ends.")
@json_option
def logs(study: str, follow: bool, as_json: bool) -> None:
    """Show what a study's drivers printed, wherever they ran; exit code 0 of -f: the study has ended."""
    store = store_of(study)
    try:
        sys.exit(show_logs(store, follow=follow, as_json=as_json))
    except KeyboardInterrupt:
        say(f"\nno longer following; {study!r} goes on")


def show_logs(store: StudyStore, *, follow: bool, as_json: bool = False) -> int:
    """What the drivers printed, to standard output, for machines a JSON text a line; the exit code."""
    from infra.services import DEFAULT_BUCKET
    from study.control.logs import follow_logs, print_logs
    from study.session import storage_here

    bucket = storage_here(home(), say, start=False) or DEFAULT_BUCKET

    def write(text: str) -> None:
        click.echo("".join(f"{json.dumps(line)}\n" for line in text.splitlines()) if as_json else text, nl=False)

    if not follow:
        if not print_logs(store, bucket, write):
            say(f"no driver of {store.name!r} has written anything yet")
        return 0
    state = follow_logs(store, bucket, write)
    say(f"study {store.name!r} is {state}")
    return 0 if state in ("finished", "stopped") else 1


@click.command()
@click.argument("target", metavar="STUDY|EVALUATION")
@click.option("--against", metavar="paper|EVALUATION", help="Of an evaluation's folder or s3:// prefix: set it "
              "beside published numbers, or beside another evaluation of the same images.")  # fmt: skip
@click.option("--out", type=PLACE, help="Of a study: folder, by default under the AGFT home. With "
              "--against: Markdown file, by default the screen.")  # fmt: skip
@click.option("--latex", "as_latex", is_flag=True, help="Of a study: its best trials as a table for papers, on the "
              "screen; the report is written as well.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="For machines, on the screen.")
@replace_option
def report(
    target: str, against: str | None, out: Path | None, as_latex: bool, as_json: bool, replace: bool
) -> None:  # fmt: skip
    """Write a study's table and figures; or set an evaluation beside published numbers or another model."""
    if as_latex and (as_json or against):
        raise UserError("--latex: neither with --json nor with --against")
    if against is None:
        _report_study(store_of(target), out, as_json=as_json, as_latex=as_latex)
        return
    from study.evaluation.against import report_against

    if out is not None:
        keep_what_is_there(out, "a report", _is_report, replace=replace)
    text = report_against(target, against, home(), as_json=as_json)
    if out is not None:
        out.write_text(text + "\n", encoding="utf-8")
        click.echo(out)
    elif as_json or not sys.stdout.isatty():
        click.echo(text)
    else:
        from rich.console import Console
        from rich.markdown import Markdown

        Console().print(Markdown(text))


def _is_report(path: Path) -> bool:
    """Whether a file begins as a page of Markdown, or is JSON."""
    return path.read_text(errors="replace").lstrip()[:2] in ("# ", "{\n", "[\n")


def _report_study(store: StudyStore, out: Path | None, *, as_json: bool, as_latex: bool) -> None:
    from study.promotion.claims import told_of
    from study.report.page import report_json, write_report

    study, trials = store.load(), store.trials()
    if as_json:
        print_json(report_json(study, trials, **told_of(store)))
        return
    written = write_report(study, trials, out or home() / "reports" / study.name, **told_of(store))
    click.echo(written.with_name("trials.tex").read_text(encoding="utf-8") if as_latex else written, nl=not as_latex)


@click.command()
@click.argument("target", metavar="STUDY|FILE.json")
@json_option
def audit(target: str, as_json: bool) -> None:
    """Derive a study's (or archive's) proposals, verdicts and claims again; exit code 1: one does not follow."""
    from study.promotion.claims import audited
    from study.store.archive import stored_in, stored_of

    file = Path(target)
    found = audited(stored_in(file) if file.suffix == ".json" else stored_of(store_of(target)))
    if as_json:
        print_json(found.json())
    else:
        click.echo(f"study {found.study}: {found.line}")
    sys.exit(0 if found.follows else 1)


@click.command()
@click.argument("study", required=False)
@click.option("--port", type=click.IntRange(0, 65535), default=PORT, show_default=True, help="0: one that is free.")
@click.option("--open/--no-open", "opened", default=True, help="Open it in a browser, where there is a display.")
def ui(study: str | None, port: int, opened: bool) -> None:
    """Serve a live page of one study, or of all, on this machine until Ctrl-C.

    It shows what the report shows, at most 2 s old, with buttons for pause, resume, stop, extend, drop and promote.
    Drivers and promotions that it starts go on when it ends.
    """
    from infra.stack.embedded import credentials
    from study.store.store import study_names

    if study is None:
        study_names(database())  # a wrong address is answered at once
    else:
        store_of(study)
    from study.live.doing import Doing
    from study.live.server import USERNAME, Server

    with Server(port, database(), credentials(home())["mlflow_password"], Doing(home())) as server:
        if study is not None:
            server.snapshot(study).now()
        address = server.address(study)
        click.echo(
            f"{address}\n  user {USERNAME}, password: mlflow_password in {home() / 'secrets.json'}; Ctrl-C ends it"
        )
        if opened and (browser := _browser()):
            browser.open(address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            click.echo("\nthe page is closed; studies go on")


def _browser() -> webbrowser.BaseBrowser | None:
    """One with windows; a text browser would take this terminal."""
    import webbrowser

    if sys.platform != "darwin" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        return None
    try:
        return webbrowser.get()
    except webbrowser.Error:
        return None
