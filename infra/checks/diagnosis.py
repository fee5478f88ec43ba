"""What a check of the surroundings found: a cause in one line, and its remedy in another."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, ParamSpec
from urllib.parse import urlsplit

from infra.services import proxy_to

HERE = "this machine"
State = Literal["ok", "warning", "failed", "skipped"]


@dataclass(frozen=True)
class Diagnosis:
    """`check` is the row's name, `where` the machine; `remedy` is empty when there is nothing to do."""

    check: str
    state: State
    detail: str
    remedy: str = ""
    where: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values, also for the way between nodes."""
        return asdict(self)


Check = Callable[[], list[Diagnosis]]
Asked = ParamSpec("Asked")


def ok(check: str, detail: str) -> Diagnosis:
    """Nothing to do."""
    return Diagnosis(check, "ok", detail)


def warning(check: str, detail: str, remedy: str) -> Diagnosis:
    """It works, and somebody should know."""
    return Diagnosis(check, "warning", detail, remedy)


def failed(check: str, detail: str, remedy: str) -> Diagnosis:
    """A study cannot run, or a promise of the service does not hold."""
    return Diagnosis(check, "failed", detail, remedy)


def skipped(check: str, detail: str) -> Diagnosis:
    """Not asked, and why."""
    return Diagnosis(check, "skipped", detail)


def unless_proxy(url: str, remedy: str) -> str:
    """`remedy`, after the proxy that this process's environment sends requests for `url` through, if it does."""
    proxy, host = proxy_to(url), urlsplit(url).hostname
    return f"requests go by {proxy}: is {host} to be in no_proxy? Else {remedy}" if proxy else remedy


class Failed(Exception):
    """A failure behind which nothing more can be looked at: it ends its check."""

    def __init__(self, check: str, detail: str, remedy: str) -> None:
        self.diagnosis = failed(check, detail, remedy)
        super().__init__(f"{check}: {detail}")


def check(examine: Callable[Asked, Iterable[Diagnosis]]) -> Callable[Asked, list[Diagnosis]]:
    """What `examine` yields, and the failure that ended it, if one did."""

    @functools.wraps(examine)
    def found(*args: Asked.args, **kwargs: Asked.kwargs) -> list[Diagnosis]:
        rows = []
        try:
            for row in examine(*args, **kwargs):
                rows.append(row)
        except Failed as failure:
            rows.append(failure.diagnosis)
        return rows

    return found


def side_by_side(checks: Mapping[str, tuple[float, Check]], *, where: str = HERE) -> list[Diagnosis]:
    """Run `{name: (seconds, check)}` at the same time; what they found, in their order. `where` is theirs, unless said.

    A check that takes longer than its seconds is left alone and counts as failed, as does one that raises. So this
    never takes longer than the slowest limit, whatever hangs.
    """
    answers: dict[str, list[Diagnosis]] = {}

    def run(name: str, check: Check) -> None:
        try:
            answers[name] = check()
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            answers[name] = [failed(name, f"the check itself failed: {reason}", "please report this")]

    threads = {
        name: threading.Thread(target=run, args=(name, check), name=f"doctor-{name}", daemon=True)
        for name, (_seconds, check) in checks.items()
    }
    for thread in threads.values():
        thread.start()
    started = time.monotonic()
    found: list[Diagnosis] = []
    for name, (seconds, _check) in checks.items():
        threads[name].join(max(0.0, started + seconds - time.monotonic()))
        late = [
            failed(
                name,
                f"no answer within {seconds:.0f} s",
                "something hangs: a firewall that drops packets, a machine that is overloaded, or a dead disk",
            )
        ]
        found += answers.get(name, late)
    return placed(found, where)


def placed(findings: Iterable[Diagnosis], where: str) -> list[Diagnosis]:
    """With `where` put to those that name no place."""
    return [finding if finding.where else replace(finding, where=where) for finding in findings]
