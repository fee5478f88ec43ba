"""Promotion: prove the best checkpoint on data that the search did not use, ship it, and only then move the champion.

1. Candidates (`study.promotion.candidates`) are measured on the confirm sets, beside the unmodified CLIP and the
   reigning champion, and the best of them is chosen there; if asked, its configuration is trained again with fresh
   seeds.
2. The gates (`study.promotion.gates`) decide about it. What does not pass goes no further, unless it is forced with a
   reason.
3. The winner, alone, is measured on the final sets; the access is counted before it happens.
4. Its files go to a prefix that never changes (`study.models.ship`), and HEAD is swapped if it is still the one that
   the gates compared with. If not, another promotion was faster: the gates decide again, against the new champion.
5. MLflow follows HEAD (`study.models.registry`), whatever was decided.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from infra.checks.s3 import require_conditional_puts
from infra.errors import Conflict, ServiceError
from infra.failpoint import reach
from infra.provenance import provenance
from study.errors import StudyFailed
from study.models.head import Head, Move, history, model_prefix, read_head, read_manifest, swap_head
from study.models.registry import follow_head
from study.models.rollback import taken_back
from study.models.ship import ship
from study.promotion.candidates import Standard, candidates, preference_of, standard_of
from study.promotion.gates import Gate, Measured, decide, lacking, outcome_of, resolved_floors, uncommitted
from study.promotion.proof import Prover
from study.promotion.records import CHAMPION, GOOD, UNMODIFIED, Order, Promotion, Site, trial_label
from study.promotion.retrain import fresh_seeds, intervals, median, retrain, spreads
from study.results.ranking import Measurement
from study.statistics import Spread
from study.store import requests as promotion_rows
from study.store.rows import TrialRow
from study.store.store import StudyStore
from study.tracking import study_key
from trainers.evaluation.record import Finding


def promote(store: StudyStore, order: Order, site: Site) -> Promotion:
    """Decide and, if the candidate wins, ship it. Needs a Ray cluster to measure on.

    Raises `UserError` for what cannot be meant, `StudyFailed` when the study has no full-length feasible trial.
    """
    work = _Work(store, order, site)
    if order.dry_run:
        try:
            return work.run()
        finally:
            work.prover.close()
    require_conditional_puts(site.bucket)
    promotion_rows.settle(store, partial(_moved, site.bucket, work.model))
    name = work.promotion.name = promotion_rows.start(store)
    reach("promotion.started")
    try:
        promotion = work.run()
    except BaseException as error:
        work.promotion.reason = " ".join(str(error).split())[:500] or type(error).__name__
        raise
    finally:
        work.prover.close()
        state = work.promotion.state
        ended = state if state in (*GOOD, "refused") else "broken"
        promotion_rows.end(store, name, ended, work.promotion.record())
    _follow(promotion, site)
    promotion_rows.end(store, name, ended, promotion.record())
    return promotion


def _moved(bucket: str, model: str) -> set[str]:
    """Promotions that moved HEAD."""
    return {str(move.facts.get("promotion")) for move in history(bucket, model)}


def _follow(promotion: Promotion, site: Site) -> None:
    """MLflow follows; what it cannot be told now is said, and made up for by the next promotion or rollback."""
    try:
        follow_head(site.bucket, promotion.model, site.tracking_uri, site.run_of)
    except ServiceError as error:
        promotion.registry = " ".join(str(error).split())


class _Work:
    """One promotion from its candidates to HEAD."""

    def __init__(self, store: StudyStore, order: Order, site: Site) -> None:
        self.store, self.order, self.site = store, order, site
        self.study, self.trials = store.load(), store.trials()
        self.spec = self.study.spec
        self.model = self.spec.promote.model_name
        self.gates = order.gates or self.spec.promote.gates
        self.preference = preference_of(self.spec, order.preference)
        self.candidates = candidates(
            self.study, self.trials, count=order.candidates or self.spec.promote.candidates, number=order.trial,
            preference=self.preference,
        )  # fmt: skip
        self.promotion = Promotion(
            model=self.model, study=self.spec.name, candidates=[trial.number for trial in self.candidates]
        )
        self.prover = Prover(self.spec, site.bucket, site.say, write=not order.dry_run)
        self.measured: dict[str, Measured] = {}
        self.compared_with: int | None = None
        self.spreads: dict[str, Spread] | None = None
        self.findings: tuple[Finding, ...] | None = None
        self.weights: Mapping[str, Any] = {}

    # --- proof ---------------------------------------------------------------------------------------------------

    def run(self) -> Promotion:
        """Choose, prove, decide, ship."""
        promotion, say = self.promotion, self.site.say
        head, etag = read_head(self.site.bucket, self.model)
        winner = self._choose(head)
        self._repeat(winner)
        self._check(winner)
        manifest: dict[str, Any] | None = None
        lost = False
        while True:
            gates = self._decide(winner, head)
            outcome, reason = outcome_of(gates)
            forced = outcome != "promote" and self.order.force is not None and not lost
            promotion.reason = reason
            if outcome != "promote" and not forced:
                promotion.state = "superseded" if lost else {"keep": "kept", "refuse": "refused"}[outcome]
                break
            if forced:
                promotion.forced = self.order.force
                promotion.reason = f"forced, because {self.order.force}; not passed: {reason}"
            reach("promotion.decided")
            if self.order.dry_run:
                promotion.state = "promoted"
                break
            if manifest is None:
                self._prove(winner)
                manifest = self._ship(winner, gates)
            try:
                move = Move("promotion", promotion.reason, self._facts(winner, gates))
                head = swap_head(self.site.bucket, self.model, manifest["version"], head, etag, move)
            except Conflict:
                say("another promotion was faster; the gates decide again, against the new champion")
                lost = True
                head, etag = read_head(self.site.bucket, self.model)
                continue
            promotion.state, promotion.generation = "promoted", head.generation
            say(f"promoted: {self.model} version {promotion.version} is the champion, generation {head.generation}")
            break
        if self.order.dry_run:
            if self.order.final:
                self._prove(winner)
            words = {"promoted": "would promote", "kept": "would keep", "refused": "would refuse"}
            promotion.state = words[promotion.state]
        return promotion

    def _measure(self, role: str, models: Mapping[str, Mapping[str, Any] | None]) -> dict[str, Measured]:
        sets = ", ".join(self.spec.data_sets()[role])
        what = "measuring" if self.prover.missing(role, models) else "measured before:"
        self.site.say(f"{role} sets {sets}: {what} {', '.join(models)}" + (" ..." if what == "measuring" else ""))
        found = self.prover.measure(role, models)
        width = max(16, *map(len, found))
        for label, each in found.items():
            clean, robust = each.result["clean_accuracy"], each.result["robust_accuracy"]
            self.site.say(f"  {label:<{width}} clean {clean:6.1%}  robust {robust:6.1%}")
        return found

    def _champion(self, head: Head) -> dict[str, Mapping[str, Any]]:
        if head.champion is None:
            return {}
        return {CHAMPION: read_manifest(self.site.bucket, self.model, head.champion)["weights"]}

    def _choose(self, head: Head) -> TrialRow:
        """The best of the candidates on the confirm sets."""
        own = {trial_label(row.number): row.best.model_dump() if row.best else None for row in self.candidates}
        self.measured = self._measure("confirm", {UNMODIFIED: None, **own, **self._champion(head)})
        self.compared_with = head.champion
        standard = self._standard()
        best = max(
            self.candidates,
            key=lambda trial: (*standard.rank(self.measured[trial_label(trial.number)].of), -trial.number),
        )
        self.promotion.trial, self.promotion.standard = best.number, standard.name
        assert best.best is not None, "a candidate has a checkpoint"
        self.weights = best.best.model_dump()
        return best

    def _standard(self) -> Standard:
        return standard_of(self.spec, self.preference, self.measured[UNMODIFIED].result)

    def _repeat(self, winner: TrialRow) -> None:
        """Fresh seeds: how much of the winner is luck; the median one ships if the study says so."""
        count = self.spec.promote.seeds if self.order.seeds is None else self.order.seeds
        if not count:
            return
        if self.order.dry_run:
            self.site.say("a dry run trains nothing: fresh seeds are left out")
            return
        seeds = fresh_seeds(self.study, self.trials, winner.number, count)
        self.prover.rest()  # the training needs the cores
        rows = retrain(
            self.store, self.study, winner, seeds, cluster=self.site.cluster, bucket=self.site.bucket,
            tracking_uri=self.site.tracking_uri, say=self.site.say,
        )  # fmt: skip
        if not rows:
            raise StudyFailed(f"no fresh seed of trial {winner.number} ran to its end; nothing is promoted")
        shipped = {seed: row.best.model_dump() for seed, row in rows.items() if row.best}
        found = self._measure("confirm", {f"seed {seed}": weights for seed, weights in shipped.items()})
        by_seed = {seed: found[f"seed {seed}"] for seed in rows}
        self.promotion.seeds = {
            "asked": list(seeds),
            "measured": {str(seed): _plain(each.result) for seed, each in by_seed.items()},
            "summary": intervals(spreads(by_seed)),
            "shipped": "the search's own checkpoint",
        }
        self.spreads = spreads(by_seed)
        if self.spec.promote.ship == "median":
            standard = self._standard()
            seed = median(by_seed, lambda each: standard.rank(each.of))
            own = trial_label(winner.number)
            self.measured[f"{own}, as searched"] = self.measured[own]
            self.measured[own] = by_seed[seed]
            self.weights = shipped[seed]
            self.promotion.seeds["shipped"] = f"seed {seed}, the median of {len(by_seed)} by {standard.name}"

    def _check(self, winner: TrialRow) -> None:
        """The evaluation's checks on itself, on the model that would ship."""
        if self.gates.sanity is not None:
            self.site.say(f"sanity checks of the evaluation on {self.gates.sanity.samples} images ...")
            self.findings = self.prover.check(trial_label(winner.number), self.weights, self.gates.sanity)

    def _decide(self, winner: TrialRow, head: Head) -> list[Gate]:
        """The gates, against the champion of now, which is measured if it is another one than before."""
        if head.champion != self.compared_with:
            self.measured.pop(CHAMPION, None)
            if self._champion(head):
                self.measured |= self._measure("confirm", self._champion(head))
            self.compared_with = head.champion
        clip, standard = self.measured[UNMODIFIED], self._standard()
        gates = decide(
            self.gates, standard, self.measured[trial_label(winner.number)], clip, self.measured.get(CHAMPION),
            floors=resolved_floors(self.gates, standard, clip.result), spreads=self.spreads,
            findings=self.findings, provenance=lacking(winner), dirty=uncommitted(winner, provenance()),
            taken_back=taken_back(self.site.bucket, self.model, self.weights["sha256"]),
        )  # fmt: skip
        if self.order.dry_run:
            gates = [_left_open(gate) for gate in gates]
        self.promotion.champion = head.champion
        self.promotion.gates = [gate.record() for gate in gates]
        self.promotion.confirm = {label: each.result for label, each in self.measured.items()}
        return gates

    # --- shipping ------------------------------------------------------------------------------------------------

    def _prove(self, winner: TrialRow) -> None:
        """The final sets, once, for the winner beside the unmodified CLIP; counted before it happens."""
        label = trial_label(winner.number)
        models = {UNMODIFIED: None, label: self.weights}
        if self.prover.missing("final", {label: self.weights}):
            promotion_rows.count_access(
                self.store, self.promotion.name, model=label, sets=self.spec.data_sets()["final"]
            )
            reach("promotion.access-counted")
        self.promotion.final_accesses = len(promotion_rows.accesses(self.store))
        self.promotion.final = {name: each.result for name, each in self._measure("final", models).items()}
        reach("promotion.proved")

    def _ship(self, winner: TrialRow, gates: list[Gate]) -> dict[str, Any]:
        label, promotion = trial_label(winner.number), self.promotion
        files = {
            **self.prover.files("confirm", label, self.weights),
            **self.prover.files("final", label, self.weights),
        }
        evaluation = {role: self.prover.evaluation_of(role, label, self.weights) for role in ("confirm", "final")}
        plan = {"gates": self.gates.model_dump(mode="json"), "evaluation": evaluation, "forced": promotion.forced,
                "seeds": promotion.seeds}  # fmt: skip
        purpose = {
            "study": self.study.slug,
            "trial": winner.number,
            "weights": self.weights["sha256"],
            "plan": hashlib.sha256(json.dumps(plan, sort_keys=True).encode()).hexdigest(),
        }
        manifest = {
            "model": self.model,
            "study": self.spec.name,
            "study_key": study_key(self.study),
            "trial": winner.number,
            "params": winner.params,
            "config": winner.config,
            "confirm": promotion.confirm,
            "final": promotion.final,
            "final_accesses": promotion.final_accesses,
            "measured_with": self.spec.evaluate.final.model_dump(mode="json"),
            "evaluation": evaluation,
            "gates": promotion.gates,
            "forced": promotion.forced,
            "seeds": promotion.seeds,
            "promotion": promotion.name,
            "champion_then": promotion.champion,
            "created_ms": int(time.time() * 1000),
            "training": [
                {"attempt": a.token, "device_seconds": a.device_seconds, **(a.provenance or {})}
                for a in winner.attempts
            ],
            "provenance": provenance(),
        }
        self.prover.rest()  # another promotion, or whoever measures more now, needs the workers' cores
        if self.site.extra_facts is not None:
            manifest |= self.site.extra_facts(manifest, self.weights)
        self.site.say(f"shipping trial {winner.number}: copying and reading back ...")
        whole = ship(
            self.site.bucket, self.model, purpose=purpose, weights=self.weights, files=files, manifest=manifest,
            extra_files=self.site.extra_files,
        )  # fmt: skip
        promotion.version, promotion.sha256 = whole["version"], whole["weights"]["sha256"]
        promotion.uri = model_prefix(self.site.bucket, self.model, whole["version"])
        return whole

    def _facts(self, winner: TrialRow, gates: list[Gate]) -> dict[str, Any]:
        """What the record of the move says."""
        return {
            "promotion": self.promotion.name,
            "study": self.spec.name,
            "trial": winner.number,
            "weights_sha256": self.weights["sha256"],
            "forced": self.promotion.forced,
            "gates": [gate.record() for gate in gates],
        }


def _left_open(gate: Gate) -> Gate:
    """What a dry run cannot decide."""
    if not gate.name.startswith("seed spread"):
        return gate
    return replace(gate, verdict="not applicable", found="a dry run trains nothing")


def _plain(result: Measurement) -> dict[str, float]:
    return {name: float(result[name]) for name in ("clean_accuracy", "robust_accuracy")}
