"""Who wins, and whether that is enough: chosen on the confirm sets, trained again, checked, judged by the gates.

Nothing here is written, registered or moved, but for the study of fresh seeds and what the prover keeps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from infra.provenance import provenance
from study.errors import StudyFailed
from study.models.head import Head, read_manifest
from study.models.manifest import UNMODIFIED, Gate, Seeds, trial_label
from study.models.rollback import taken_back
from study.promotion.candidates import Standard, candidates, preference_of, standard_of
from study.promotion.gates import Measured, decide, lacking, resolved_floors, uncommitted
from study.promotion.proof import Prover
from study.promotion.records import CHAMPION, Order, Site
from study.promotion.retrain import fresh_seeds, median, retrain, spreads, summary
from study.spec.config import StudyConfig
from study.spec.promotion import GatesConfig, Preference
from study.statistics import METRICS, Spread
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore
from trainers.evaluation.record import Finding
from trainers.schema.records import Weights


@dataclass(frozen=True)
class Case:
    """What a promotion is about: the order, the study as it is found, and who measures."""

    store: StudyStore
    order: Order
    site: Site
    study: StudyRow
    trials: Sequence[TrialRow]
    preference: Preference | None
    candidates: Sequence[TrialRow]
    prover: Prover

    @property
    def spec(self) -> StudyConfig:
        return self.study.spec

    @property
    def model(self) -> str:
        """The name whose champion may change."""
        return self.spec.promote.model_name

    @property
    def gates(self) -> GatesConfig:
        return self.order.gates or self.spec.promote.gates


def open_case(store: StudyStore, order: Order, site: Site) -> Case:
    """Raises `UserError` for what cannot be meant, `StudyFailed` if no trial may be promoted. Close its prover."""
    study, trials = store.load(), store.trials()
    preference = preference_of(study.spec, order.preference)
    best = candidates(
        study, trials, count=order.candidates or study.spec.promote.candidates, number=order.trial,
        preference=preference,
    )  # fmt: skip
    prover = Prover(study.spec, site.bucket, site.say, write=not order.dry_run)
    return Case(store, order, site, study, trials, preference, best, prover)


@dataclass(frozen=True)
class Known:
    """What is known so far: the winner, the weights that would ship, and every model measured on the confirm sets.

    `compared_with`: the champion among the measured; `spreads`: metric -> over fresh seeds; `findings`: of the sanity
    checks, None if they were not made.
    """

    winner: TrialRow
    weights: Weights
    standard: Standard
    measured: Mapping[str, Measured]
    compared_with: int | None
    seeds: Seeds | None = None
    spreads: Mapping[str, Spread] | None = None
    findings: tuple[Finding, ...] | None = None

    @property
    def label(self) -> str:
        """The winner's, among the measured."""
        return trial_label(self.winner.number)


def measure(case: Case, role: str, models: Mapping[str, Weights | None]) -> dict[str, Measured]:
    """Every model (None: the unmodified CLIP) on the sets of a role, said as it happens."""
    sets = ", ".join(case.spec.data_sets()[role])
    what = "measuring" if case.prover.missing(role, models) else "measured before:"
    case.site.say(f"{role} sets {sets}: {what} {', '.join(models)}" + (" ..." if what == "measuring" else ""))
    found = case.prover.measure(role, models)
    width = max(16, *map(len, found))
    for label, each in found.items():
        clean, robust = each.result["clean_accuracy"], each.result["robust_accuracy"]
        case.site.say(f"  {label:<{width}} clean {clean:6.1%}  robust {robust:6.1%}")
    return found


def choose(case: Case, head: Head) -> Known:
    """The best of the candidates on the confirm sets, beside the unmodified CLIP and the reigning champion."""
    own = {trial_label(trial.number): _weights(trial) for trial in case.candidates}
    measured = measure(case, "confirm", {UNMODIFIED: None, **own, **_champion(case, head)})
    standard = standard_of(case.spec, case.preference, measured[UNMODIFIED].result)
    best = max(
        case.candidates, key=lambda trial: (*standard.rank(measured[trial_label(trial.number)].of), -trial.number)
    )
    return Known(best, _weights(best), standard, measured, head.champion)


def _weights(trial: TrialRow) -> Weights:
    assert trial.best is not None, "a finished trial has a checkpoint"
    return trial.best


def _champion(case: Case, head: Head) -> dict[str, Weights]:
    if head.champion is None:
        return {}
    return {CHAMPION: read_manifest(case.site.bucket, case.model, head.champion).weights}


def repeat(case: Case, known: Known) -> Known:
    """Fresh seeds: how much of the winner is luck; the median one ships if the study says so."""
    winner, site = known.winner, case.site
    count = case.spec.promote.seeds if case.order.seeds is None else case.order.seeds
    if not count:
        return known
    if case.order.dry_run:
        site.say("a dry run trains nothing: fresh seeds are left out")
        return known
    asked = fresh_seeds(case.study, case.trials, winner.number, count)
    case.prover.rest()  # the training needs the cores
    rows = retrain(
        case.store, case.study, winner, asked, cluster=site.cluster, bucket=site.bucket,
        tracking_uri=site.tracking_uri, say=site.say,
    )  # fmt: skip
    if not rows:
        raise StudyFailed(f"no fresh seed of trial {winner.number} ran to its end; nothing is promoted")
    found = measure(case, "confirm", {f"seed {seed}": _weights(row) for seed, row in rows.items()})
    by_seed = {seed: found[f"seed {seed}"] for seed in rows}
    weights, measured, shipped = known.weights, known.measured, "the search's own checkpoint"
    if case.spec.promote.ship == "median":
        seed = median(by_seed, lambda each: known.standard.rank(each.of))
        measured = {**measured, f"{known.label}, as searched": measured[known.label], known.label: by_seed[seed]}
        weights = _weights(rows[seed])
        shipped = f"seed {seed}, the median of {len(by_seed)} by {known.standard.name}"
    found_spreads = spreads(by_seed)
    seeds = Seeds(
        asked=asked, measured={seed: {name: each.of(name) for name in METRICS} for seed, each in by_seed.items()},
        summary=summary(found_spreads), shipped=shipped,
    )  # fmt: skip
    return replace(known, weights=weights, measured=measured, seeds=seeds, spreads=found_spreads)


def check(case: Case, known: Known) -> Known:
    """The evaluation's checks on itself, on the model that would ship."""
    how = case.gates.sanity
    if how is None:
        return known
    case.site.say(f"sanity checks of the evaluation on {how.samples} images ...")
    return replace(known, findings=case.prover.check(known.label, known.weights, how))


def judge(case: Case, known: Known, head: Head) -> tuple[Known, tuple[Gate, ...]]:
    """The gates, against the champion of now, which is measured if it is another one than before."""
    if head.champion != known.compared_with:
        others = {label: each for label, each in known.measured.items() if label != CHAMPION}
        champion = _champion(case, head)
        found = {**others, **(measure(case, "confirm", champion) if champion else {})}
        known = replace(known, measured=found, compared_with=head.champion)
    measured, clip = known.measured, known.measured[UNMODIFIED]
    gates = decide(
        case.gates, known.standard, measured[known.label], clip, measured.get(CHAMPION),
        floors=resolved_floors(case.gates, known.standard, clip.result), spreads=known.spreads,
        findings=known.findings, provenance=lacking(known.winner), dirty=uncommitted(known.winner, provenance()),
        taken_back=taken_back(case.site.bucket, case.model, known.weights.sha256),
    )  # fmt: skip
    return known, tuple(_left_open(gate) if case.order.dry_run else gate for gate in gates)


def _left_open(gate: Gate) -> Gate:
    """What a dry run cannot decide."""
    if not gate.name.startswith("seed spread"):
        return gate
    return replace(gate, verdict="not applicable", found="a dry run trains nothing")
