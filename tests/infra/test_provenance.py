"""Every result says which code and packages made it, with or without git."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from infra.provenance import code_revision, package_versions, provenance


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=tester", "-c", "user.email=tester@example.org"]
    done = subprocess.run(["git", "-C", str(folder), *identity, *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "code.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "first")
    return tmp_path


def test_a_clean_checkout_gives_its_commit(repository: Path) -> None:
    (repository / "notes.txt").write_text("untracked files do not change the code")
    found = code_revision(repository)
    assert found["revision"] == git(repository, "rev-parse", "HEAD")
    assert found["dirty"] is False


def test_a_changed_file_makes_it_dirty(repository: Path) -> None:
    (repository / "code.py").write_text("x = 2\n")
    assert code_revision(repository)["dirty"] is True


def test_outside_a_repository_the_revision_is_unknown(tmp_path: Path) -> None:
    assert {**code_revision(tmp_path), "version": None} == {"revision": None, "dirty": None, "version": None}


def test_installed_in_another_projects_repository_it_is_unknown(repository: Path) -> None:
    package = repository / "venv" / "site-packages"
    package.mkdir(parents=True)
    (package / "module.py").write_text("")
    assert code_revision(package)["revision"] is None


def test_without_git_it_is_unknown(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert code_revision(repository)["revision"] is None


def test_the_record_is_json_and_names_the_stack() -> None:
    record = json.loads(json.dumps(provenance()))
    assert {"torch", "ray", "optuna", "mlflow", "numpy"} <= set(record["packages"])
    assert record["packages"] == package_versions()
    assert record["python"].startswith("3.")
    assert record["cpus"] >= 1
    assert set(record["code"]) == {"revision", "dirty", "version"}


def test_asking_does_not_load_torch() -> None:
    code = "import sys; from infra.provenance import provenance; provenance(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


def test_code_that_was_copied_without_its_repository_is_what_the_environment_says(monkeypatch):
    monkeypatch.setenv("AGFT_GIT_REVISION", "c0ffee")
    monkeypatch.setenv("AGFT_GIT_DIRTY", "1")
    told = code_revision()
    assert (told["revision"], told["dirty"]) == ("c0ffee", True)
    assert code_revision(Path(__file__).parents[2])["revision"] != "c0ffee", "a named folder speaks for itself"
    monkeypatch.setenv("AGFT_GIT_DIRTY", "0")
    assert code_revision()["dirty"] is False
    monkeypatch.delenv("AGFT_GIT_DIRTY")
    assert code_revision()["dirty"] is None
