"""What promotions claim follows from what they measured; a changed number in a record is found."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from study.models.manifest import CHAMPION, UNMODIFIED, Look, Tried, trial_label
from study.promotion.candidates import candidates, standard_of
from study.promotion.claims import audited
from study.promotion.gates import Measured, decide, decide_finally, lacking, outcome_of, resolved_floors, sentences
from study.promotion.records import Order, Promotion
from study.results.rights import Rights, measurement
from study.store import tables as t
from study.store.archive import stored_in
from tests.support.light import light_study
from tests.support.simulated import Simulation, write_archive

N = 800
LOOK = Look(number=2, level=0.01, hypotheses=3)
NAME = "0123456789abcdef"
CONFIRM = {"clip": (700, 150), "worse": (660, 380), "better": (650, 420), "champion": (655, 250)}


def model(label: str, name: str, clean: int, robust: int) -> Measured:
    rights = {name: Rights(np.arange(N), np.arange(N) < clean, ("4/255",), (np.arange(N) < robust)[None])}
    return Measured(label, measurement(rights), rights)


def promoted(content: dict[str, Any], folder: Path, *, champion: bool, final: tuple[int, int]) -> dict[str, Any]:
    """The study with a promotion of its second candidate by the search, the first one on the confirm sets."""
    stored = stored_in(write_archive(content, folder / "plain.json"))
    spec, rows = stored.study.spec, list(stored.trials)
    best = candidates(stored.study, rows, count=2, number=None, preference=None)
    confirm = {UNMODIFIED: model(UNMODIFIED, "tiny-colors", *CONFIRM["clip"])}
    for row, kind in zip(best, ("worse", "better"), strict=True):
        confirm[trial_label(row.number)] = model(trial_label(row.number), "tiny-colors", *CONFIRM[kind])
    if champion:
        confirm[CHAMPION] = model(CHAMPION, "tiny-colors", *CONFIRM["champion"])
    standard = standard_of(spec, None, confirm[UNMODIFIED].result)
    winner, gates = best[1], spec.promote.gates
    label = trial_label(winner.number)
    own, clip = confirm[label], confirm[UNMODIFIED]
    found = decide(
        gates, standard, own, clip, confirm.get(CHAMPION), look=LOOK if champion else None,
        floors=resolved_floors(gates, standard, clip.result), spreads=None, findings=None,
        provenance=lacking(winner), dirty=[],
    )  # fmt: skip
    outcome, reason = outcome_of(found)
    assert outcome == "promote", reason
    seen = {each: model(each, "tiny-letters", *of) for each, of in ((UNMODIFIED, (600, 100)), (label, final))}
    finally_ = decide_finally(gates, standard, standard.floors, (seen[label], seen[UNMODIFIED]))
    vetoes = [gate for gate in finally_ if gate.verdict == "failed"]
    promotion = Promotion(
        "m", spec.name, NAME, order=Order().record(), seen=[row.number for row in rows if row.state == "complete"],
        candidates=[row.number for row in best], trial=winner.number, standard=standard.name,
        gates=(*found, *finally_), look=LOOK if champion else None,
        confirm={each: one.result for each, one in confirm.items()},
        final={each: one.result for each, one in seen.items()}, final_accesses=1,
        state="refused" if vetoes else "promoted", reason=sentences(vetoes) or reason,
        sha256="" if vetoes else winner.best.sha256,
    )  # fmt: skip
    changed = copy.deepcopy(content)
    key = {"id": 1, "study": spec.name}
    changed["rows"][t.promotions.name] = [
        {**key, "started_ms": 1, "ended_ms": 2, "name": NAME, "owner": "h|1|1", "state": promotion.state,
         "record": promotion.record()}
    ]  # fmt: skip
    access = {**key, "promotion": NAME, "at_ms": 1, "model": label, "sets": ["tiny-letters"]}
    changed["rows"][t.final_accesses.name] = [access]
    return changed


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> dict[str, Any]:
    gates = {"sanity": None}
    spec = light_study("claims", budget={"trials": 16}, sampler={"name": "random"}, promote={"gates": gates})
    return Simulation(spec, seed=2).run().content()


def audit_of(content: dict[str, Any], folder: Path):
    return audited(stored_in(write_archive(content, folder / "a.json")))


@pytest.mark.parametrize("champion", [False, True], ids=["no-champion", "champion"])
@pytest.mark.parametrize("final", [(560, 350), (500, 60)], ids=["confirmed", "vetoed"])
def test_a_promotion_follows(content, champion, final, tmp_path):
    record = promoted(content, tmp_path, champion=champion, final=final)
    assert record["rows"][t.promotions.name][0]["state"] == ("promoted" if final[1] > 100 else "refused")
    found = audit_of(record, tmp_path)
    assert found.follows, found.line
    assert found.counted["promotions"] == 1
    assert found.counted["gates"] == 8


def test_a_candidate_that_a_gate_refused_is_on_record_before_the_next_one(content, tmp_path):
    changed = promoted(content, tmp_path, champion=False, final=(560, 350))
    record = changed["rows"][t.promotions.name][0]["record"]
    other = next(number for number in record["candidates"] if number != record["trial"])
    record["tried"] = [Tried(trial=other, reason="", gates=()).model_dump(mode="json")]
    assert "trial: stored" in audit_of(changed, tmp_path).line, "the one that was tried first is no better"


def gate(record: dict[str, Any], name: str) -> dict[str, Any]:
    return next(each for each in record["gates"] if each["name"] == name)


def own(record: dict[str, Any], role: str) -> dict[str, Any]:
    return record[role][f"trial {record['trial']}"]


def add(row: dict[str, Any], key: str, by: float) -> None:
    row[key] += by


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a candidate": (lambda r: r.update(candidates=r["candidates"][::-1]), "candidates"),
    "the winner": (
        lambda r: r.update(trial=next(each for each in r["candidates"] if each != r["trial"])), "trial: stored"),
    "a count on a confirm set": (
        lambda r: add(own(r, "confirm")["datasets"]["tiny-colors"]["4/255"], "robust", 1), "confirm.trial"),
    "an accuracy on the final sets": (lambda r: add(own(r, "final"), "clean_accuracy", 0.01), "final.trial"),
    "a gate's value": (lambda r: add(gate(r, "floor clean")["numbers"], "value", 1e-6), "gates.floor clean."),
    "a gate's floor": (lambda r: add(gate(r, "floor clean")["numbers"], "floor", -1e-6), "gates.floor clean.numbers"),
    "a gate's margin": (
        lambda r: add(gate(r, "non-inferior clean")["numbers"], "margin", 1e-9), "gates.non-inferior clean"),
    "a sum of differences": (
        lambda r: add(gate(r, "improvement")["numbers"]["sets"]["tiny-colors"], "sum", 1), "gates.improvement"),
    "a bound": (lambda r: add(gate(r, "improvement")["numbers"], "lower", 0.01), "gates.improvement.numbers.lower"),
    "a level": (lambda r: add(r["look"], "level", 0.01), "numbers.level"),
    "a verdict": (lambda r: gate(r, "improvement").update(verdict="failed"), "gates.improvement.verdict"),
    "a gate that is missing": (lambda r: r["gates"].pop(0), "gates: stored"),
    "the bytes": (lambda r: r.update(sha256="f" * 64), "sha256"),
    "the looks at the final sets": (lambda r: add(r, "final_accesses", 1), "final_accesses"),
    "the reason": (lambda r: r.update(reason="because"), "reason"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_number_is_found(change, content, tmp_path):
    changed, (apply, place) = promoted(content, tmp_path, champion=True, final=(560, 350)), CHANGES[change]
    apply(changed["rows"][t.promotions.name][0]["record"])
    found = audit_of(changed, tmp_path)
    assert found.first is not None
    assert found.first.promotion == NAME
    assert place in str(found.first), found.line
