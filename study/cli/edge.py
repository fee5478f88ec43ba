"""What the commands share: kinds of arguments, where things are kept, a study by its name, what goes to which stream.

Light to import, as every module of commands is: `agft --help` and `agft COMMAND --help` pay for click alone, and a
mistake is answered before anything heavy is imported. So what a command needs is imported inside it; what computes
(torch, Ray, MLflow) is in `study.cli.here`, whose modules import at their top.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from study.console import Say, say
from study.errors import SERVICE_ERRORS, USER_ERRORS, UserError

if TYPE_CHECKING:
    from infra.services import Services
    from study.store.store import StudyStore

# A name that a user gives, be it of a file, a study, a model or a label, is one rule wherever it is given.

LONGEST_NAME, NAME_BYTES = 100, 200  # file systems have 255 bytes, and what is being written has a longer name
LONGEST_PATH = 1000
FREE_TEXT = ("address", "alphas", "eps", "on", "preference", "reason")  # parameters that are no names
ELSEWHERE = ("s3://", "hf-hub:", "http://", "https://")


def check_name(text: str, where: str) -> None:
    """`UserError` for a name, or a part of a path, that is empty or too long and not that of something here."""
    bare = text.removeprefix("folder:")
    if text and (text.startswith(ELSEWHERE) or os.path.lexists(bare)):
        return
    longest = max(bare.split("/"), key=_num_bytes)
    if not text or len(longest) > LONGEST_NAME:
        shown = f"{longest[:20]}... has {len(longest)}" if longest else "this one is empty"
        raise UserError(f"{where}: a name has 1 to {LONGEST_NAME} characters; {shown}")
    if not text.isprintable():
        raise UserError(f"{where}: a name is text that can be printed, not {text[:LONGEST_NAME]!a}")
    if _num_bytes(longest) > NAME_BYTES:
        raise UserError(f"{where}: a name has at most {NAME_BYTES} bytes; {longest[:20]}... has {_num_bytes(longest)}")
    if len(text) > LONGEST_PATH:
        raise UserError(f"{where}: a path has at most {LONGEST_PATH:,} characters; {text[:20]}... has {len(text):,}")


def _num_bytes(text: str) -> int:
    return len(text.encode(errors="surrogatepass"))


def checked_names(command: click.Command) -> click.Command:
    """The command, with every name that it is given held to the rule."""
    for child in command.commands.values() if isinstance(command, click.Group) else ():
        checked_names(child)
    for each in command.params:
        if each.type is click.STRING and each.name not in FREE_TEXT:
            each.callback = _checked
        if each.name == "reason":
            each.callback = _storable
        if isinstance(each, click.Argument) and each.name in ("study", "target"):
            each._custom_shell_complete = _studies
    return command


def _studies(ctx: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Names of studies, for a shell that completes one."""
    from study.store.store import study_names

    return [name for name in study_names(database()) if name.startswith(begun)]


def _checked(ctx: click.Context, parameter: click.Parameter, value: Any) -> Any:
    given = ctx.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
    for text in value if isinstance(value, tuple) else (value,):
        if given and text is not None:
            check_name(text, _shown(parameter))
    return value


def _storable(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """What a terminal in another encoding hands over as halves of characters, which no database and no JSON takes."""
    if not value:
        return value
    from trainers.schema.records import storable

    return storable(value)


def _shown(parameter: click.Parameter | None) -> str:
    if parameter is None:
        return "name"
    return parameter.opts[0] if isinstance(parameter, click.Option) else str(parameter.name).upper()


class Place(click.Path):
    """A path whose parts are names."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        check_name(os.fspath(value), _shown(param))
        return super().convert(value, param, ctx)


FILE = Place(dir_okay=False, path_type=Path)
FOLDER = Place(file_okay=False, path_type=Path)
PLACE = Place(path_type=Path)
POSITIVE = click.FloatRange(min=0, min_open=True)
json_option = click.option("--json", "as_json", is_flag=True, help="For machines.")
replace_option = click.option("--replace", is_flag=True, help="Replace an older file of this kind.")


def keep_what_is_there(path: Path, what: str, is_one: Callable[[Path], bool], *, replace: bool) -> None:
    """`UserError` where a command would write over a file, unless it is to `replace` one of the kind that it writes.

    `what`: the kind, for the message; `is_one`: whether an existing file is of it. Asked before anything is started.
    """
    path = path.expanduser()
    if not path.exists() and not path.is_symlink():
        return
    if not path.is_file() or not is_one(path):
        raise UserError(f"{path}: is there already, and is not {what}; nothing was written, give another name")
    if not replace:
        raise UserError(f"{path}: is there already; nothing was written. Give another name, or --replace it")


def home() -> Path:
    """Where this user's things are kept."""
    from infra.services import default_home

    return default_home(os.environ)


def database() -> str:
    """The study database's address."""
    from study.store.database import database_url

    return database_url(home())


def store_of(name: str) -> StudyStore:
    """The study's store; an unknown name is answered here, before anything heavier is imported or started."""
    from study.store.store import StudyStore

    store = StudyStore(database(), name)
    store.load()
    return store


def connected(*, start: bool) -> Services:
    """The services, for a command whose results alone go to standard output; `start`: False for one that only reads."""
    from study.session import services_here, services_to_read

    return services_here(home(), say, kept_up=False) if start else services_to_read(home())


def answered() -> tuple[type[Exception], ...]:
    """The errors that a command answers with a message: ours, and the study database's where that was imported."""
    found = [*USER_ERRORS, *SERVICE_ERRORS]
    for module, name in (("sqlalchemy.exc", "SQLAlchemyError"), ("optuna.exceptions", "StorageInternalError")):
        if module in sys.modules:
            found.append(getattr(sys.modules[module], name))
    return tuple(found)


def answer(error: Exception) -> int:
    """Say what is wrong; the exit code: 2 for wrong input, 1 for what failed."""
    wrong = isinstance(error, USER_ERRORS)
    text = str(error)
    if isinstance(error, OSError):
        text = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    elif not wrong and not isinstance(error, SERVICE_ERRORS):
        from study.store.database import said

        text = f"the study database cannot do what was asked: {said(error)}"
    say(text if wrong else f"failed: {text}")
    return 2 if wrong else 1


def print_json(value: Any) -> None:
    """A result for machines."""
    click.echo(json.dumps(value, indent=2))


def tell(text: str, *, as_json: bool, **record: Any) -> None:
    """A result: `text` for a person, or for machines the record with the text as its `message`."""
    if as_json:
        print_json({**record, "message": text})
    else:
        click.echo(text)


def told(as_json: bool) -> Say:
    """Where a command's remarks go: where its results are for machines, to standard error."""
    return say if as_json else click.echo


def hear_interrupts() -> None:
    """Let SIGINT raise KeyboardInterrupt, also where it was ignored from the start.

    A script that starts a command by `&` has it ignore SIGINT, so that Ctrl-C ends the script alone. Python then sets
    no handler, and `kill -INT` does nothing, except where `agft run` has set its own. We listen all the same: to us an
    interrupt means to pause, or to end in good order, and the same command goes on. So a Ctrl-C that was meant for the
    script loses nothing, while a command that nobody can interrupt has to be killed. Who wants it out of a terminal's
    reach gives it a session of its own (`setsid`). SIGHUP, which `nohup` is about, only a driver hears.
    """
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may, and only it is interrupted
    if signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, signal.SIG_DFL):
        signal.signal(signal.SIGINT, signal.default_int_handler)
