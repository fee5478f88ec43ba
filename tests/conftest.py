"""Fixtures that several tests share: the real embedded services, in a home of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from infra.services import Services

SERVICE_VARIABLES = ("AWS_", "MLFLOW_", "AGFT_")
TESTS = Path(__file__).parent
# What starts Ray, or counts the processes and ports of this machine: one after the other, on one worker.
ONE_AT_A_TIME = (
    "e2e", "faults", "infra/cluster", "infra/deploy", "infra/stack", "study/doctor", "study/evaluation",
    "trainers/test_workers.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """With several workers (`--dist loadgroup`) a file's tests stay together, since they share what they start."""
    if config.getoption("loadgroup", False):  # set on the workers
        for item in items:
            path = item.path.relative_to(TESTS)
            alone = any(path.is_relative_to(place) for place in ONE_AT_A_TIME)
            item.add_marker(pytest.mark.xdist_group("one-at-a-time" if alone else str(path)))


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
