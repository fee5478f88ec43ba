"""A study's trials, in order: what was proposed for each, what it measured, how it was judged, how it ended."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from study.audit import ends, measured
from study.audit.findings import Finding, difference, same, sentence
from study.search import knowledge
from study.search.proposals import configured, proposer_of
from study.search.stopping import rungs, verdict
from study.spec.dimension import Dimension
from study.store.rows import Proposal, StudyRow, TrialRow
from trainers.schema.records import Measurement
from trainers.schema.training import Goal

PROPOSED = "what the sampler proposes, given the trials that it knows"
PROPOSERS = ("optuna", "numpy", "scipy", "cmaes")


def other_versions(packages: Mapping[str, str]) -> str:
    """Of the packages that propose, those that a study ran with in another version than is installed; '' if none."""
    found = []
    for name in PROPOSERS:
        with contextlib.suppress(PackageNotFoundError):
            if name in packages and packages[name] != version(name):
                found.append(f"{name} {packages[name]}, here {version(name)}")
    return f"; it ran with {'; '.join(found)}" if found else ""


class Derivation:
    """Of one study that has begun. `rows` are its trials so far, with what samplers kept derived and never read.

    `line`: the trials that were granted to run again, in order.
    """

    def __init__(self, study: StudyRow, line: Sequence[int], tally: Counter[str]) -> None:
        assert study.goal is not None, "checked before"
        assert study.lag is not None, "checked before"
        assert study.baseline is not None, "checked before"
        self.study, self.line, self.tally = study, list(line), tally
        self.spec, self.lag = study.spec, study.lag
        self.goal: Goal = study.goal
        self.unmodified: Measurement = study.baseline
        self.dimensions: list[Dimension] = self.spec.dimensions()
        self.base = self.spec.base(self.goal)
        self.proposer = proposer_of(study)
        self.rows: dict[int, TrialRow] = {}
        self.versions = other_versions((study.provenance or {}).get("packages") or {})

    def trial(self, row: TrialRow) -> Iterator[Finding]:
        """The next one. What goes wrong while it is derived is a finding, too: some number of it makes no sense."""
        try:
            yield from self._trial(row)
        except (KeyError, IndexError, TypeError, ValueError, ArithmeticError, AssertionError) as error:
            yield Finding("trial", row.params, None, f"cannot be derived: {sentence(error)}", trial=row.number)

    def _trial(self, row: TrialRow) -> Iterator[Finding]:
        number = row.number
        if number != len(self.rows):
            yield Finding("number", number, len(self.rows), "trials are numbered without a gap")
        yield from self._whether_again(row)
        proposal = self.proposer.propose(self.rows, number, self.lag, rerun_of=row.rerun_of)
        yield from self._proposed(row, proposal)
        self.tally["trials"] += 1
        self.tally["proposals"] += proposal.origin is None and row.rerun_of is None
        self.rows[number] = row = replace(row, memory=dict(proposal.memory))
        yield from measured.epochs(self.spec, self.goal, row, self.unmodified.datasets)
        self.tally["epochs"] += len(row.epochs)
        yield from self._judged(row)
        yield from ends.trial(self.spec, self.goal, row, self.lag)

    def _whether_again(self, row: TrialRow) -> Iterator[Finding]:
        if row.rerun_of is None:
            return
        asked = knowledge.repeats(self.rows, self.line)
        if row.rerun_of != asked:
            yield Finding("rerun_of", row.rerun_of, asked, "as was asked for, in this order", trial=row.number)

    def _proposed(self, row: TrialRow, proposal: Proposal) -> Iterator[Finding]:
        what = "the parameters of the repeated trial" if row.rerun_of is not None else PROPOSED + self.versions
        what = what if proposal.origin is None else f"given: {proposal.origin}"
        if not same(row.params, proposal.params):
            yield Finding(*difference(row.params, proposal.params, "params"), what, trial=row.number)
        if row.origin != proposal.origin:
            yield Finding("origin", row.origin, proposal.origin, what, trial=row.number)
        config = configured(self.base, proposal.params, self.dimensions)
        if not same(row.config, config):
            rule = "the specification with the trial's parameters"
            yield Finding(*difference(row.config, config, "config"), rule, trial=row.number)

    def _judged(self, row: TrialRow) -> Iterator[Finding]:
        """A verdict at every rung that the trial went on from, and none elsewhere."""
        seen = knowledge.known(self.rows, row.number, self.lag)
        reached = row.last.epoch if row.last else 0
        due = [epoch for epoch in rungs(self.spec.scheduler, row.config["train"]["epochs"]) if epoch <= reached]
        ended: int | None = None  # by the rule
        for epoch in due:
            if ended is not None:
                break  # it is finished after all, and nobody judges it any more
            place: dict[str, Any] = {"trial": row.number, "epoch": epoch}
            stored = row.verdicts.get(epoch)
            if stored is None and epoch == reached:
                break  # it was cut off there, before it was judged
            derived = verdict(self.spec.scheduler, row, seen, epoch=epoch, goal=self.goal)
            if stored != derived[0]:
                yield Finding("verdict", stored, derived[0], f"{self.spec.scheduler.name}: {derived[1]}", **place)
            if row.reasons.get(epoch) != derived[1]:
                yield Finding("reason", row.reasons.get(epoch), derived[1], "what the verdict says", **place)
            self.tally["verdicts"] += 1
            ended = epoch if derived[0] == "stop" else None
        for epoch in row.verdicts:
            if epoch not in due or (ended is not None and epoch > ended):
                rule = "nobody is judged there"
                yield Finding("verdict", row.verdicts[epoch], None, rule, trial=row.number, epoch=epoch)
