"""A virtual environment that holds open_clip and what it requires, and nothing else: no network, no second download.

The distributions are those that `open_clip_torch` requires, and those that they require, by their own metadata; each
one is linked from the environment of the tests. Everything else that is installed there (Ray, MLflow, boto3, this
project) cannot be imported.
"""

from __future__ import annotations

import importlib.metadata as metadata
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

__all__ = ["bare_environment", "required_by"]


def required_by(name: str) -> set[str]:
    """The distribution and, transitively, what it requires here, extras left out."""
    found: set[str] = set()
    open_ = [name]
    while open_:
        each = open_.pop().lower().replace("_", "-")
        if each in found:
            continue
        found.add(each)
        for text in metadata.requires(each) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                open_.append(requirement.name)
    return found


def bare_environment(folder: Path, name: str = "open_clip_torch") -> Path:
    """Make it in `folder`; the path of its python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    [packages] = folder.glob("lib/python*/site-packages")
    for each in sorted(required_by(name)):
        distribution = metadata.distribution(each)
        for top in sorted({file.parts[0] for file in distribution.files or () if file.parts[0] not in ("..", ".")}):
            source = Path(str(distribution.locate_file(top)))
            if source.exists() and not (packages / top).exists() and top != "__pycache__":
                (packages / top).symlink_to(source)
    return folder / "bin" / "python"
