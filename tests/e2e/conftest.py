"""One real study, killed in the middle and finished, that all the end-to-end tests look at: the demo."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.services.real_run import Run, read_until, wait_until_gone

DEMO = Path(__file__).parents[2] / "study/recipes/demo.yaml"
SERVICES = (
    "mlflow",
    "weed",
    "infra.stack.keeper",
)  # they outlive the command; Ray's processes must go with their driver


@pytest.fixture(scope="package")
def killed_and_finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """The demo: SIGKILL when one trial has finished and another is running, then run to the end and promoted."""
    folder = tmp_path_factory.mktemp("thread")
    run = Run(home=folder / "home", file=DEMO)
    try:
        driver = run.start("run", str(run.file))
        first = read_until(driver, lambda line: "of 8 trials done" in line)
        second = read_until(driver, lambda line: re.search(r"trial +\d +epoch", line) is not None)
        run.printed["killed"] = first + second
        run.printed["listening"] = "\n".join(run.listening())
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        run.printed["before"] = json.dumps(run.trials("demo"))
        left = wait_until_gone(
            lambda: [p for p in run.processes() if not any(name in " ".join(p.cmdline()) for name in SERVICES)]
        )
        run.printed["left"] = ", ".join(process.name() for process in left)
        run.printed["finished"] = run.agft("run", str(run.file), "--promote").stdout
        yield run
    finally:
        run.agft("stack", "down", check=False)
        for process in run.processes():
            process.kill()
