"""Fixtures that several tests share: the real embedded services, in a home of their own."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.services.real_run import FAIR

if TYPE_CHECKING:
    from infra.services import Services

pytest_plugins = ["tests.support.skips"]

os.environ.update(FAIR)

SERVICE_VARIABLES = ("AWS_", "MLFLOW_", "AGFT_")
# What starts Ray, or looks at the processes and ports of this machine: on one worker, one after the other.
ONE_AT_A_TIME = (
    "tests/e2e", "tests/faults", "tests/infra/cluster", "tests/infra/deploy", "tests/infra/stack", "tests/study/doctor",
    "tests/study/evaluation", "tests/trainers/test_workers.py",
)  # fmt: skip


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With several workers (`-n 2`) a file's tests stay on one of them, since they share what they start."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            path = Path(nodeid.partition("::")[0])
            alone = any(path.is_relative_to(place) for place in ONE_AT_A_TIME)
            return "one at a time" if alone else str(path)

    return ByFile(config, log)


@pytest.fixture(autouse=True)
def same_draws() -> None:
    """What a test draws from a global generator does not depend on the tests before it."""
    random.seed(0)
    if numpy := sys.modules.get("numpy"):  # not every test needs it
        numpy.random.seed(0)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    """SeaweedFS and MLflow, started once for the whole test run and ended after it."""
    from infra.stack import stack as embedded

    home = tmp_path_factory.mktemp("stack") / "home"
    try:
        yield embedded.up(home)
    finally:
        embedded.down(home)


@pytest.fixture
def service_environment(stack: Services, monkeypatch: pytest.MonkeyPatch) -> Services:
    """The same services, with this process's environment pointing at them and at nothing else."""
    for name in list(os.environ):
        if name.startswith(SERVICE_VARIABLES):
            monkeypatch.delenv(name)
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AGFT_HOME", str(stack.home))
    return stack


@pytest.fixture
def prefix(service_environment: Services, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An `s3://` prefix that no other test uses."""
    return f"s3://{service_environment.bucket}/tests/{request.node.name[:60]}-{tmp_path.name}"
