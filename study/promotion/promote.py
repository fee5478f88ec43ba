"""Promotion: prove the best checkpoint on data that the search did not use, ship it, and only then move the champion.

1. Candidates (`study.promotion.candidates`) are measured on the confirm sets, beside the unmodified CLIP and the
   reigning champion, and the best of them is chosen there (`study.promotion.winner`); if asked, its configuration is
   trained again with fresh seeds.
2. The gates (`study.promotion.gates`) decide about it. One that they refuse goes no further, unless it is forced with a
   reason, and the next best of the candidates is decided about.
3. The winner, alone, is measured on the final sets; the access is counted before it happens. They may veto. Then nobody
   is promoted: to try the next one there would be to choose on the final sets.
4. Its files go to a prefix that never changes (`study.models.ship`), and HEAD is swapped if it is still the one that
   the gates compared with. If not, another promotion was faster: the gates decide again, against the new champion.
5. MLflow follows HEAD (`study.models.registry`), whatever was decided.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import closing
from copy import copy
from functools import partial
from typing import Any

from infra.checks.s3 import require_conditional_puts
from infra.errors import Conflict
from infra.failpoint import reach
from infra.provenance import provenance
from study.audit.audit import audit
from study.models.approval import hold
from study.models.head import Head, Move, history, model_prefix, read_head, swap_head
from study.models.manifest import UNMODIFIED, Draft, Manifest, Tried
from study.models.registry import followed
from study.models.ship import ship
from study.promotion.gates import Outcome, by_evidence, outcome_of, sentences
from study.promotion.records import GOOD, Order, Promotion, Site
from study.promotion.verdicts import FINAL
from study.promotion.winner import Case, Known, check, choose, judge, judge_finally, measure, open_case, repeat
from study.store import requests as promotion_rows
from study.store.archive import stored_of
from study.store.store import StudyStore
from study.tracking import study_key

STATES = {"keep": "kept", "refuse": "refused"}
DRY = {"promoted": "would promote", "kept": "would keep", "refused": "would refuse"}


def promote(store: StudyStore, order: Order, site: Site) -> Promotion:
    """Decide and, if the candidate wins, ship it. Needs a Ray cluster to measure on.

    Raises `UserError` for what cannot be meant, `StudyFailed` when the study has no full-length feasible trial.
    """
    case = open_case(store, order, site)
    promotion = Promotion(
        case.model, case.spec.name, order=order.record(),
        seen=[trial.number for trial in case.trials if trial.state == "complete"],
        candidates=[trial.number for trial in case.candidates],
    )  # fmt: skip
    with closing(case.prover):
        if order.dry_run:
            return _dry(case, promotion)
        require_conditional_puts(site.bucket)
        promotion_rows.settle(store, partial(_moved, site.bucket, case.model))
        name = promotion.name = promotion_rows.start(store)
        reach("promotion.started")
        try:
            _decide(case, promotion)
        except BaseException as error:
            promotion.reason = " ".join(str(error).split())[:500] or type(error).__name__
            raise
        finally:
            ended = promotion.state if promotion.state in (*GOOD, "refused") else "broken"
            promotion_rows.end(store, name, ended, promotion.record())
    promotion.registry = followed(site.bucket, promotion.model, site.tracking_uri, site.run_of)
    promotion_rows.end(store, name, ended, promotion.record())
    return promotion


def _moved(bucket: str, model: str) -> set[str]:
    """Promotions that moved HEAD."""
    return {str(move.facts.get("promotion")) for move in history(bucket, model)}


def _dry(case: Case, promotion: Promotion) -> Promotion:
    """What would be decided; the final sets are looked at only if that was asked for."""
    known = _decide(case, promotion)
    if case.order.final:
        _look(case, known, promotion)
        if promotion.state == "promoted" and (vetoes := _vetoes(promotion)):
            promotion.state, promotion.reason = "refused", vetoes
    promotion.state = DRY[promotion.state]
    return promotion


def _decide(case: Case, promotion: Promotion) -> Known:
    """Choose, prove, decide, ship and move HEAD; of a dry run, up to the decision. What was found fills `promotion`."""
    head, etag = read_head(case.site.bucket, case.model)
    known, outcome = _first_that_passes(case, promotion, head)
    manifest: Manifest | None = None
    while True:
        if outcome != "promote":
            if manifest is not None or case.order.force is None:
                promotion.state = "superseded" if manifest is not None else STATES[outcome]
                return known
            _force(case, promotion)
        reach("promotion.decided")
        if case.order.dry_run:
            promotion.state = "promoted"
            return known
        if manifest is None:
            _look(case, known, promotion)
            if vetoes := _vetoes(promotion):
                if case.order.force is None:
                    promotion.state, promotion.reason = "refused", vetoes
                    return known
                _force(case, promotion)
            manifest = _ship(case, known, promotion)
        if case.order.hold:
            hold(case.site.bucket, case.model, manifest.version, head.champion, _move_of(case, known, promotion))
            promotion.state = "held"
            return known
        try:
            head = _move(case, known, promotion, manifest.version, head, etag)
        except Conflict:
            case.site.say("another promotion was faster; the gates decide again, against the new champion")
            head, etag = read_head(case.site.bucket, case.model)
            known, outcome = _judged(case, known, promotion, head)
            if outcome == "promote" and promotion.forced is not None:
                _force(case, promotion)  # against the final sets, as before
            continue
        promotion.state, promotion.generation = "promoted", head.generation
        case.site.say(
            f"promoted: {case.model} version {promotion.version} is the champion, generation {head.generation}"
        )
        return known


def _first_that_passes(case: Case, promotion: Promotion, head: Head) -> tuple[Known, Outcome]:
    """The best candidate that no gate refuses, or, if each is refused, the best of all; and what the gates say of it.

    Who is no improvement on the champion ends it, since the next one has no higher value. Force is for the best one.
    """
    refused: list[tuple[Known, Promotion]] = []
    for candidate in choose(case, head):
        known = repeat(case, candidate)
        promotion.trial, promotion.standard, promotion.seeds = known.winner.number, known.standard.name, known.seeds
        known, outcome = _judged(case, check(case, known), promotion, head)
        if outcome != "refuse" or case.order.force is not None:
            return known, outcome
        refused.append((known, copy(promotion)))
        said = f"trial {known.winner.number} is refused: {promotion.reason}"
        case.site.say(said if len(refused) == len(case.candidates) else f"{said}; the next candidate is tried")
        tried = Tried(trial=known.winner.number, reason=promotion.reason, gates=promotion.gates)
        promotion.tried = (*promotion.tried, tried)
    known, best = refused[0]
    vars(promotion).update({**vars(best), "tried": promotion.tried[1:]})
    return known, "refuse"


def _judged(case: Case, known: Known, promotion: Promotion, head: Head) -> tuple[Known, Outcome]:
    """What the gates say of a candidate beside the champion of now; `promotion` holds it."""
    known, gates = judge(case, known, head)
    kept = tuple(gate for gate in promotion.gates if gate.name.startswith(FINAL) and promotion.final)
    promotion.champion, promotion.look, promotion.gates = head.champion, known.look, (*gates, *kept)
    promotion.confirm = {label: each.result for label, each in known.measured.items()}
    if not kept and case.order.dry_run:
        promotion.gates = (*gates, *judge_finally(case, known, None))
    outcome, promotion.reason = outcome_of(gates)
    return known, outcome


def _vetoes(promotion: Promotion) -> str:
    """What the final sets say against the winner; empty if nothing."""
    against = [gate for gate in promotion.gates if gate.name.startswith(FINAL) and gate.verdict == "failed"]
    return sentences(against)


def _force(case: Case, promotion: Promotion) -> None:
    """Against its gates, with the reason that was given."""
    promotion.forced = case.order.force
    failed = sentences([gate for gate in promotion.gates if gate.verdict == "failed"])
    promotion.reason = f"forced, because {case.order.force}; not passed: {failed or 'nothing, by now'}"


def _look(case: Case, known: Known, promotion: Promotion) -> None:
    """The final sets, once, for the winner beside the unmodified CLIP; counted before it happens."""
    winner = {known.label: known.weights}
    if case.prover.missing("final", winner):
        sets = case.spec.data_sets()["final"]
        promotion_rows.count_access(case.store, promotion.name, model=known.label, sets=sets)
        reach("promotion.access-counted")
    promotion.final_accesses = len(promotion_rows.accesses(case.store))
    found = measure(case, "final", {UNMODIFIED: None, **winner})
    promotion.final = {label: each.result for label, each in found.items()}
    confirmed = tuple(gate for gate in promotion.gates if not gate.name.startswith(FINAL))
    promotion.gates = (*confirmed, *judge_finally(case, known, found))
    reach("promotion.proved")


def _ship(case: Case, known: Known, promotion: Promotion) -> Manifest:
    """A version of its own, complete in S3; the same one when the same promotion was cut short before."""
    site, winner, prover = case.site, known.winner, case.prover
    files: dict[str, bytes] = {}
    evaluation: dict[str, str] = {}
    for role in ("confirm", "final"):
        files |= prover.files(role, known.weights)
        evaluation[role] = prover.evaluation_of(role, known.weights)
    draft = _draft(case, known, promotion, evaluation)
    prover.rest()  # another promotion, or whoever measures more now, needs the workers' cores
    if site.extra_facts is not None:
        draft = site.extra_facts(draft, known.weights)
    site.say(f"shipping trial {winner.number}: copying and reading back ...")
    manifest = ship(
        site.bucket, case.model, purpose=_purpose(case, known, draft), weights=known.weights, files=files, draft=draft,
        extra_files=site.extra_files,
    )  # fmt: skip
    if site.sign is not None:
        site.say(f"signing version {manifest.version} ...")
        site.sign(manifest)
    promotion.version, promotion.sha256 = manifest.version, manifest.weights.sha256
    promotion.uri = model_prefix(site.bucket, case.model, manifest.version)
    return manifest


def _purpose(case: Case, known: Known, draft: Draft) -> dict[str, Any]:
    """What a version is reserved for: who comes with the same goes on in it."""
    decided = draft.model_dump(mode="json", include={"evaluation", "forced", "seeds"})
    plan = {"gates": case.gates.model_dump(mode="json"), **decided}
    return {
        "study": case.study.slug,
        "trial": draft.trial,
        "weights": known.weights.sha256,
        "plan": hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest(),
    }


def _draft(case: Case, known: Known, promotion: Promotion, evaluation: dict[str, str]) -> Draft:
    winner = known.winner
    assert promotion.name is not None, "what ships has a row"
    return Draft(
        model=case.model,
        study=case.spec.name,
        study_key=study_key(case.study),
        trial=winner.number,
        params=winner.params,
        config=winner.config,
        confirm=promotion.confirm,
        final=promotion.final,
        final_accesses=promotion.final_accesses,
        measured_with=case.spec.evaluate.final.suite("final", case.spec.data.final),
        evaluation=evaluation,
        gates=promotion.gates,
        look=promotion.look,
        tried=promotion.tried,
        forced=promotion.forced,
        seeds=promotion.seeds,
        promotion=promotion.name,
        champion_then=promotion.champion,
        created_ms=int(time.time() * 1000),
        training=tuple(
            {"attempt": a.token, "device_seconds": a.device_seconds, **(a.provenance or {})} for a in winner.attempts
        ),
        provenance=provenance(),
        audit=audit(stored_of(case.store)).line,
    )


def _move(case: Case, known: Known, promotion: Promotion, version: int, head: Head, etag: str | None) -> Head:
    """HEAD after this version has become the champion; `Conflict` if another promotion was faster."""
    return swap_head(case.site.bucket, case.model, version, head, etag, _move_of(case, known, promotion))


def _move_of(case: Case, known: Known, promotion: Promotion) -> Move:
    """Why the champion changes, as HEAD's history keeps it."""
    facts = {
        "promotion": promotion.name,
        "study": case.spec.name,
        "trial": known.winner.number,
        "weights_sha256": known.weights.sha256,
        "forced": promotion.forced,
        "look": None if promotion.look is None else promotion.look.number,
        "evidence": by_evidence(promotion.gates),
        "gates": [gate.record() for gate in promotion.gates],
    }
    return Move("promotion", promotion.reason, facts)
