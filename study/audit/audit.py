"""A study derived again from its specification and its stored records, and compared with what is stored.

Nothing is trained, measured, fetched or unpickled: counts become accuracies, accuracies best epochs, verdicts and
proposals, one trial after the other, each knowing what the rule of knowledge lets it know (`study.search.knowledge`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from study.audit import ends, measured
from study.audit.findings import Audit, Finding, difference, same, sentence
from study.audit.trials import Derivation
from study.results.status import ALL_DONE
from study.search import knowledge
from study.search.proposals import given
from study.search.stopping import stands_still
from study.store.requests import EXTENDED, IN_LINE
from study.store.rows import TrialRow
from study.store.typed import Stored

Check = Callable[[Stored, Counter[str]], Iterator[Finding]]
RAISED = ("trials", "hours", "gpu_hours")  # of a budget, that may be raised


def audit(stored: Stored, checks: Sequence[Check] = ()) -> Audit:
    """Whether everything follows. `checks`: further ones, each with the tally of what was derived."""
    tally: Counter[str] = Counter()
    try:
        first = next(_findings(stored, tally, checks), None)
    except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, AssertionError) as error:
        first = Finding("study", None, None, f"cannot be derived: {sentence(error)}")
    return Audit(stored.study.name, first, tally)


def _findings(stored: Stored, tally: Counter[str], checks: Sequence[Check]) -> Iterator[Finding]:
    yield from _specification(stored)
    yield from _budget(stored)
    if stored.trials or stored.study.baseline is not None:
        yield from _beginning(stored)
    if stored.trials:
        derivation = Derivation(stored.study, _line(stored), tally)
        for row in stored.trials:
            yield from _patience(stored, derivation, row)
            yield from derivation.trial(row)
        yield from _dropped(stored)
        yield from _end(stored, derivation)
    for check in checks:
        yield from check(stored, tally)
    yield from _sum(stored)


def _specification(stored: Stored) -> Iterator[Finding]:
    study, filed = stored.study, stored.filed
    if filed.spec_hash() != study.spec_hash:
        yield Finding("spec_hash", study.spec_hash, filed.spec_hash(), "SHA-256 of the specification")
    if filed.name != study.name:
        yield Finding("spec.name", filed.name, study.name, "the study's name")


def _extensions(stored: Stored) -> list[Mapping[str, Any]]:
    return [each for each in stored.requests if each["kind"] == "extend" and each["outcome"] == EXTENDED]


def _budget(stored: Stored) -> Iterator[Finding]:
    """The file's, and what every extension added."""
    study, rule = stored.study, "the specification's, and what `agft extend` added"
    derived, now = stored.filed.budget.model_dump(mode="json"), study.spec.budget.model_dump(mode="json")
    extended_at = 0
    for each in _extensions(stored):
        more = json.loads(each["note"])
        derived |= {name: derived[name] + more[name] for name in RAISED if derived[name] is not None}
        extended_at = each["number"]
        if extended_at > len(stored.trials):
            yield Finding("requests.extend.number", extended_at, len(stored.trials), "trials that there were")
    if not same(now, derived):
        yield Finding(*difference(now, derived, "budget"), rule)
    if study.extended_at != extended_at:
        yield Finding("extended_at", study.extended_at, extended_at, "trials that there were at the last extension")


def _beginning(stored: Stored) -> Iterator[Finding]:
    """What is stored before the first trial starts."""
    study, spec = stored.study, stored.study.spec
    for name in ("lag", "starts", "baseline"):
        if getattr(study, name) is None and (stored.trials or name == "baseline"):
            yield Finding(name, None, "a value", "stored before the first trial")
            return
    if study.lag is not None and (study.lag < 0 or spec.lag not in ("auto", study.lag)):
        yield Finding("lag", study.lag, spec.lag, "the specification's; auto: 0 or more")
    if study.starts is not None:
        own = [{"origin": start.origin, "values": start.values} for start in given(spec, spec.dimensions())]
        there = list(study.starts[: len(own)] if spec.prior else study.starts)
        if not same(there, own):
            rule = "the trials that the specification gives" + (", before those of prior studies" if spec.prior else "")
            yield Finding(*difference(there, own, "starts"), rule)
    assert study.baseline is not None, "asked above"
    yield from measured.on_dev(spec, study.baseline.datasets, "baseline.datasets")
    yield from measured.counts(study.baseline.datasets, "baseline.datasets")
    yield from measured.means(study.baseline, study.baseline.datasets, "baseline.")


def _line(stored: Stored) -> list[int]:
    """Trials that were granted to run again, in order."""
    return [each["number"] for each in stored.requests if each["kind"] == "rerun" and each["outcome"] == IN_LINE]


def _patience(stored: Stored, derivation: Derivation, row: TrialRow) -> Iterator[Finding]:
    """No trial is started once the study stands still, by what the trial knows."""
    number = row.number
    extended_at = max((each["number"] for each in _extensions(stored) if each["number"] <= number), default=0)
    seen = knowledge.known(derivation.rows, number, derivation.lag)
    if why := stands_still(derivation.spec.budget, extended_at, seen, derivation.goal):
        yield Finding("started", True, False, why, trial=number)


def _dropped(stored: Stored) -> Iterator[Finding]:
    """Whoever is out was asked to be, in this order; whoever was is out."""
    asked = [each for each in stored.requests if each["kind"] == "drop"]
    granted = list(dict.fromkeys(each["number"] for each in asked if each["outcome"] == "dropped"))
    wanted = {*granted, *(each["number"] for each in asked if each["done_ms"] is None)}
    rows = {row.number: row for row in stored.trials}
    rule = "of `agft drop`, in the order of asking"
    for number, row in rows.items():
        if row.state == "dropped" and number not in wanted:
            yield Finding("state", row.state, row.state_before, f"nobody asked for it: {rule}", trial=number)
        if row.dropped_at is not None and row.dropped_at > len(rows):
            yield Finding("dropped_at", row.dropped_at, len(rows), "trials that there were", trial=number)
    least = 0
    for number in granted:
        found = rows.get(number)
        if found is None or found.state != "dropped":
            yield Finding("state", found and found.state, "dropped", rule, trial=number)
            continue
        if (found.dropped_at or 0) < least:
            yield Finding("dropped_at", found.dropped_at, least, rule, trial=number)
        least = max(least, found.dropped_at or 0)


def _end(stored: Stored, derivation: Derivation) -> Iterator[Finding]:
    """As many trials as the budget has, and the study's own word about its end."""
    study, rows, number = stored.study, derivation.rows, len(derivation.rows)
    wanted = knowledge.wanted(rows, study.spec.budget.trials, derivation.line)
    if number > wanted:
        rule = "budget.trials, those that take a dropped one's place, and repetitions"
        yield Finding("trials", number, wanted, rule)
    seen = knowledge.known(rows, number, derivation.lag)
    still = stands_still(study.spec.budget, study.extended_at, seen, derivation.goal)
    running = [row.number for row in rows.values() if not row.finished]
    late = sum(row.dropped_at == number for row in rows.values())  # nobody has taken their place
    extended = any(each["number"] == number for each in _extensions(stored))
    settled = study.state == "finished" and study.message == ALL_DONE and not late and not extended
    if study.state == "finished" and running and not extended:
        yield Finding("state", "running", "ended", "the study has finished", trial=running[0])
    if settled and number < wanted:
        yield Finding("trials", number, wanted, f"the study says: {ALL_DONE}")
    told = study.state == "finished" and (study.message or "").endswith("(budget.patience)")
    if told and study.message != still and not (late or extended):
        yield Finding("message", study.message, still or None, "whether the study stands still")
    yield from ends.finished(study.spec, derivation.goal, rows, settled=settled)


def _sum(stored: Stored) -> Iterator[Finding]:
    """Last of all: it says that something was changed, and not what."""
    if stored.sums is not None and stored.sums[0] != stored.sums[1]:
        rule = "of the file's content; something that nothing derives was changed, such as a time, a loss or an address"
        yield Finding("sha256", *stored.sums, rule)
