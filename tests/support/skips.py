"""Which tests may be skipped. A test that is skipped for want of anything else fails the run.

`make setup` brings all that the default tier needs but a GPU: were a missing program a reason to skip, a run could be
green and have tested nothing. The slow tier also needs what no package brings: root, namespaces, containers.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

__all__ = ["ANYWHERE", "SLOW", "Skips", "allowed"]

ANYWHERE = ("needs a GPU",)
SLOW = (  # how the reasons begin
    "network namespaces need ",
    "no bridge can be made here",
    "a disk of its own needs root",
    "no podman here",
    "no image ",
    "no C compiler",
    "no Chromium here",
    "no LaTeX here",
    "this machine has no address but loopback",
)


def allowed(reason: str, keywords: Iterable[str]) -> bool:
    """Whether a test with these marks may be skipped for this reason."""
    return reason.startswith(ANYWHERE + (SLOW if "slow" in keywords else ()))


class Skips:
    """Fails a run in which a test was skipped that should not have been."""

    def __init__(self) -> None:
        self.wrong: dict[str, str] = {}

    def _look(self, report: pytest.TestReport | pytest.CollectReport, keywords: Iterable[str]) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            said = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            reason = said.removeprefix("Skipped: ")
            if not allowed(reason, keywords):
                self.wrong[report.nodeid] = reason

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._look(report, report.keywords)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        self._look(report, ())

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.wrong and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.wrong:
            terminalreporter.section("skipped, and should not have been (tests/support/skips.py)")
            for test, reason in self.wrong.items():
                terminalreporter.line(f"{test}: {reason}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Skips(), "agft-skips")
