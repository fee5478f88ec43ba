"""What promotions claim on record, derived again: candidates, accuracies, winner, gates, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from study.audit import measured
from study.audit.audit import audit
from study.audit.findings import ROUNDING, Audit, Finding, difference, same
from study.errors import StudyFailed, UserError
from study.models.manifest import CHAMPION, UNMODIFIED, Gate, trial_label
from study.promotion.candidates import Standard, candidates, preference_of, standard_of
from study.promotion.gates import lacking, outcome_of, sentences
from study.promotion.verdicts import BETTER, FINAL, IMPROVEMENT, NON_INFERIOR, rederive
from study.spec.promotion import GatesConfig, Preference, parse_floor
from study.store import requests as promotion_rows
from study.store.archive import stored_of
from study.store.rows import TrialRow
from study.store.store import StudyStore
from study.store.typed import Stored
from trainers.schema.records import Measurement
from trainers.schema.training import CALIBRATIONS

Record = Mapping[str, Any]
OF_SUMS = 1e-9  # rounding of a mean over images, beside a mean of ratios
COMPARED = ("look", "hypotheses", "level", "mean")
VALUES = (*COMPARED, "value")
ENDED = ("promoted", "held", "kept", "refused", "superseded")
STATES = {"keep": "kept", "refuse": "refused", "promote": "promoted"}


def audited(stored: Stored) -> Audit:
    """A study with its promotions."""
    return audit(stored, (promotions,))


def told_of(store: StudyStore) -> dict[str, Any]:
    """What a report says beside its trials, as `study.report.page.write_report` takes it: promotions, and the audit."""
    return {"promotions": promotion_rows.promotions(store), "audit": audited(stored_of(store)).line}


def promotions(stored: Stored, tally: Counter[str]) -> Iterator[Finding]:
    """Every promotion on record. One that was cut off claims what it got to."""
    for row in stored.promotions:
        record = row["record"] or {}
        if "order" not in record:
            continue  # its process was gone before it had written anything
        tally["promotions"] += 1
        for found in Claims(stored, row, record).findings(tally):
            yield replace(found, promotion=row["name"])


class Claims:
    """Of one promotion, given its row and its record, as `study.promotion.records.Promotion` writes it."""

    def __init__(self, stored: Stored, row: Mapping[str, Any], record: Record) -> None:
        self.stored, self.state, self.ended_ms, self.record = stored, row["state"], row["ended_ms"], record
        self.spec, self.order = stored.study.spec, record["order"]
        given = self.order["gates"]
        self.gates = self.spec.promote.gates if given is None else GatesConfig.model_validate(given)
        self.rows = {row.number: row for row in stored.trials}
        self.median = bool(record["seeds"]) and self.spec.promote.ship == "median"  # a fresh seed ships

    def findings(self, tally: Counter[str]) -> Iterator[Finding]:
        """In the order in which it was made."""
        try:
            preference = preference_of(self.spec, self.order["preference"])
            yield from self._candidates(preference)
            for role in ("confirm", "final"):
                yield from self._measured(role, self.record[role])
            if self.state not in ENDED:
                return  # cut off: its trial may be one candidate, and its gates another's
            confirm = self.record["confirm"]
            standard = standard_of(self.spec, preference, confirm[UNMODIFIED])
            if self.record["standard"] != standard.name:
                yield Finding("standard", self.record["standard"], standard.name, "the goal, and the preference")
            yield from self._chosen(standard)
            yield from self._gates(standard, tally)
            yield from self._outcome()
            yield from self._shipped()
        except (UserError, StudyFailed) as error:
            yield Finding("record", self.record["candidates"], None, f"cannot be derived: {error}")

    def _candidates(self, preference: Preference | None) -> Iterator[Finding]:
        """Of the full-length trials of then, the best."""
        seen, order = self.record["seen"], self.order
        then = []
        for number in seen:
            row = self.rows.get(number)
            if row is None or "complete" not in (row.state, row.state_before):
                yield Finding("seen", number, None, "a trial of full length")
                return
            then.append(replace(row, state="complete"))
        count = order["candidates"] or self.spec.promote.candidates
        found = candidates(self.stored.study, then, count=count, number=order["trial"], preference=preference)
        derived = [row.number for row in found]
        if self.record["candidates"] != derived:
            yield Finding("candidates", self.record["candidates"], derived, "the best full-length trials of then")

    def _measured(self, role: str, found: Mapping[str, Any]) -> Iterator[Finding]:
        """Accuracies from counts, on the role's sets, of every model on the same images."""
        sets = sorted(set(self.spec.data_sets()[role]))
        own = {label: Measurement.model_validate(each) for label, each in found.items()}
        for label, each in own.items():
            path = f"{role}.{label}"
            if sorted(each.datasets) != sets:
                yield Finding(f"{path}.datasets", sorted(each.datasets), sets, f"data.{role}")
            yield from measured.counts(each.datasets, f"{path}.datasets")
            yield from measured.means(each, each.datasets, f"{path}.")
            if UNMODIFIED in own:
                yield from measured.same_images(each.datasets, own[UNMODIFIED].datasets, f"{path}.datasets")

    def _of(self, role: str, label: str) -> Callable[[str], float]:
        return lambda metric: float(self.record[role][label][metric])

    def _chosen(self, standard: Standard) -> Iterator[Finding]:
        """The best on the confirm sets, or the next one where each before was refused."""
        confirm, record = self.record["confirm"], self.record

        def rank(number: int) -> tuple[float, ...]:
            label = trial_label(number)
            searched = f"{label}, as searched"
            return (*standard.rank(self._of("confirm", searched if searched in confirm else label)), -number)

        order = sorted(record["candidates"], key=rank, reverse=True)
        tried = [each["trial"] for each in record["tried"]]
        own = [*tried, record["trial"]]
        if len(own) == len(order) and self.state not in ("promoted", "held", "kept"):
            own = own if own == order else [record["trial"], *tried]  # all were refused: the best one stands for them
        if own != order[: len(own)]:
            yield Finding("trial", own, order[: len(own)], "the best candidates on the confirm sets, in this order")

    def _gates(self, standard: Standard, tally: Counter[str]) -> Iterator[Finding]:
        """Every verdict from its numbers, and the numbers from what was measured."""
        given = [(f"tried.{each['trial']}.gates", each["trial"], each["gates"]) for each in self.record["tried"]]
        for path, number, gates in [*given, ("gates", self.record["trial"], self.record["gates"])]:
            for kept in gates:
                gate, where = Gate(**kept), f"{path}.{kept['name']}"
                derived = rederive(gate).record()
                tally["gates"] += 1
                if not same(kept, derived):
                    yield Finding(*difference(kept, derived, where), "what the gate says of its numbers")
                yield from self._numbers(gate, number, standard, f"{where}.numbers")
            names = [kept["name"] for kept in gates]
            wanted = self._names(standard, final=path == "gates" and bool(self.record["final"]))
            if sorted(set(names) - {"not taken back"}) != sorted(wanted) or len(set(names)) < len(names):
                yield Finding(path, sorted(names), sorted(wanted), "one verdict for every gate (promote.gates)")

    def _names(self, standard: Standard, *, final: bool) -> list[str]:
        """Gates that there are to be."""
        gates = self.gates
        floors = [_word(metric) for metric in (standard.at_least if gates.floors is None else gates.floors)]
        names = [f"floor {word}" for word in floors]
        names += [BETTER] if gates.better_than_clip else []
        names += [f"{NON_INFERIOR} {_word(metric)}" for metric in gates.non_inferior]
        names += [IMPROVEMENT] if gates.improvement is not None else []
        names += [f"seed spread {_word(metric)}" for metric in gates.max_seed_spread]
        names += [name for name, made in (("provenance", gates.provenance), ("clean tree", gates.clean_tree)) if made]
        names += ["sanity"] if gates.sanity is not None else []
        if final and gates.final:
            names += [f"{FINAL} {BETTER}"] if gates.better_than_clip else []
            names += [f"{FINAL} floor {word}" for word in floors if word not in CALIBRATIONS]
        return names

    def _numbers(self, gate: Gate, number: int, standard: Standard, path: str) -> Iterator[Finding]:
        """A gate's numbers as far as they are said elsewhere, too."""
        rule = "as measured, and as promote.gates says"
        told = self._told(gate, number, standard)
        if number != self.record["trial"]:  # it may have been beside another champion, or was trained again, too
            told = {name: each for name, each in told.items() if name not in (VALUES if self.median else COMPARED)}
        for name, derived in told.items():
            stored = gate.numbers.get(name)
            numbers = isinstance(stored, int | float) and isinstance(derived, int | float)
            rounding = OF_SUMS if name == "mean" else ROUNDING
            if stored != derived and not (numbers and abs(stored - derived) <= rounding):
                yield Finding(f"{path}.{name}", stored, derived, rule)

    def _told(self, gate: Gate, number: int, standard: Standard) -> dict[str, Any]:
        """Name -> what it must be, of the gate's numbers that follow from something else on record."""
        name, final = gate.name.removeprefix(f"{FINAL} "), gate.name.startswith(f"{FINAL} ")
        role, gates, look = "final" if final else "confirm", self.gates, self.record["look"]
        models = self.record[role]
        if final and not models:
            return {}
        own, clip = self._of(role, trial_label(number)), self._of(role, UNMODIFIED)
        compared = "sets" in gate.numbers
        found: dict[str, Any] = {}
        if compared and not final and look is not None:
            found = {"look": look["number"], "hypotheses": look["hypotheses"],
                     "level": look["level"] / look["hypotheses"]}  # fmt: skip
        champion = self._of(role, CHAMPION) if CHAMPION in models else None
        word = name.rpartition(" ")[2]
        metric = word if word in CALIBRATIONS else f"{word}_accuracy"
        if name.startswith("floor "):
            texts = gates.floors if gates.floors is not None else standard.floors
            found |= {"value": own(metric), "floor": parse_floor(texts[metric]).resolve(clip(metric))}  # type: ignore[index]
        elif name == BETTER and final:
            found |= {"metric": standard.name, "mean": standard.value(own) - standard.value(clip)}
        elif name == BETTER:
            found |= {"metric": standard.name, "value": standard.value(own), "clip": standard.value(clip)}
        elif name.startswith(NON_INFERIOR):
            found |= {"margin": gates.non_inferior[metric]}  # type: ignore[index]
            found |= {"mean": champion(metric) - own(metric)} if compared and champion else {}
        elif name == IMPROVEMENT and gates.improvement is not None:
            found |= {"by": gates.improvement.by, "certain": gates.improvement.certain, "metric": standard.name}
            if compared and champion and "mean" in gate.numbers:
                found["mean"] = standard.value(own) - standard.value(champion)
        elif name.startswith("seed spread "):
            found |= {"limit": gates.max_seed_spread[metric]}  # type: ignore[index]
            seeds = self.record["seeds"] if number == self.record["trial"] else None
            found |= {"deviation": seeds["summary"][metric]["deviation"]} if seeds else {}
        elif name == "provenance":
            found |= {"missing": lacking(self.rows[number])}
        return found

    def _outcome(self) -> Iterator[Finding]:
        """State and reason from the gates."""
        record, gates = self.record, [Gate(**kept) for kept in self.record["gates"]]
        before = [gate for gate in gates if not gate.name.startswith(f"{FINAL} ")]
        vetoes = [gate for gate in gates if gate.name.startswith(f"{FINAL} ") and gate.verdict == "failed"]
        outcome, reason = outcome_of(before)
        state = STATES[outcome]
        if outcome == "promote" and vetoes:
            state, reason = "refused", sentences(vetoes)
        if record["forced"] is not None and self.state in ("promoted", "held"):
            failed = sentences([gate for gate in gates if gate.verdict == "failed"])
            state, reason = "promoted", f"forced, because {record['forced']}; not passed: {failed or 'nothing, by now'}"
        if record["state"] != self.state:
            yield Finding("state", record["state"], self.state, "the promotion's own state")
        late = self.state == "superseded" and state in ("kept", "refused")  # another promotion was faster
        waits = self.state == "held" and state == "promoted"  # another person has to approve
        if self.state != state and not late and not waits:
            yield Finding("state", self.state, state, f"what the gates say: {reason}")
        if record["reason"] != reason:
            yield Finding("reason", record["reason"], reason, "what the gates say")
        yield from self._seeds(record["seeds"])

    def _seeds(self, seeds: Mapping[str, Any] | None) -> Iterator[Finding]:
        """Means and deviations over fresh seeds."""
        if seeds is None:
            return
        from study.promotion.retrain import summary  # it knows how to train, and few promotions did
        from study.statistics import METRICS, spread

        spreads = {str(name): spread([each[name] for each in seeds["measured"].values()]) for name in METRICS}
        for metric, each in summary(spreads).items():
            for name, value in each.model_dump(mode="json").items():
                stored = seeds["summary"][metric][name]
                if stored != value and not (stored and value and abs(stored - value) <= ROUNDING):
                    yield Finding(f"seeds.summary.{metric}.{name}", stored, value, "over the fresh seeds")

    def _shipped(self) -> Iterator[Finding]:
        """The bytes of what was decided about, and how often the final sets had been looked at."""
        record = self.record
        best: TrialRow = self.rows[record["trial"]]
        searched = best.best if best.best and not self.median else None
        if record["sha256"] and searched and record["sha256"] != searched.sha256:
            yield Finding("sha256", record["sha256"], searched.sha256, "the winner's best checkpoint")
        if record["final"]:
            looks = [each for each in self.stored.accesses if each["at_ms"] <= self.ended_ms]
            own = [place for place, each in enumerate(looks, start=1) if each["promotion"] == record["name"]]
            if not max(own, default=0) <= record["final_accesses"] <= len(looks):  # others may look meanwhile
                rule = "looks at the final sets until then"
                yield Finding("final_accesses", record["final_accesses"], len(looks), rule)


def _word(metric: str) -> str:
    return metric.removesuffix("_accuracy")
