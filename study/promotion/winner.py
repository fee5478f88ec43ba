"""Who wins, and whether that is enough: chosen on the confirm sets, trained again, checked, judged by the gates.

Nothing here is written, registered or moved, but for the study of fresh seeds, what the prover keeps, and the count of
looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from infra.failpoint import reach
from infra.provenance import provenance
from study.errors import StudyFailed
from study.models.head import Head, read_manifest
from study.models.looks import claim_look
from study.models.manifest import CHAMPION, UNMODIFIED, Gate, Look, Seeds, trial_label
from study.models.rollback import taken_back
from study.promotion.candidates import (
    Standard,
    candidates,
    check_weights,
    floors_of,
    preference_of,
    shortage,
    standard_of,
)
from study.promotion.gates import Measured, decide, decide_finally, lacking, resolved_floors, uncommitted
from study.promotion.proof import Prover
from study.promotion.records import Order, Site
from study.promotion.retrain import fresh_seeds, median, retrain, spreads, summary
from study.promotion.verdicts import gate_of
from study.spec.config import StudyConfig
from study.spec.promotion import GatesConfig, Preference
from study.statistics import METRICS, Spread
from study.store.rows import StudyRow, TrialRow
from study.store.store import StudyStore
from trainers.evaluation.record import Finding
from trainers.schema.records import Weights
from trainers.schema.training import ACCURACIES


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

    @property
    def seeds(self) -> int:
        """How many fresh seeds a candidate is trained with again."""
        return self.spec.promote.seeds if self.order.seeds is None else self.order.seeds

    @property
    def hypotheses(self) -> int:
        """How many statements a look may turn out to have made: one a checkpoint that it may choose, one a floor."""
        checkpoints = len(self.candidates) * (self.seeds if self.spec.promote.ship == "median" else 1)
        return checkpoints + sum(name in ACCURACIES for name in floors_of(self.spec, self.preference))


def open_case(store: StudyStore, order: Order, site: Site) -> Case:
    """Raises `UserError` for what cannot be meant, `StudyFailed` if no trial may be promoted. Close its prover."""
    study, trials = store.load(), store.trials()
    preference = preference_of(study.spec, order.preference)
    check_weights(study.spec, preference)
    count = order.candidates or study.spec.promote.candidates
    best = candidates(study, trials, count=count, number=order.trial, preference=preference)
    if order.trial is None and (short := shortage(best, count)):
        site.say(short)
    prover = Prover(study.spec, site.bucket, site.say, write=not order.dry_run)
    return Case(store, order, site, study, trials, preference, best, prover)


@dataclass(frozen=True)
class Known:
    """What is known so far of one candidate: the weights that would ship, and every model measured on the confirm sets.

    `compared_with`: the champion among the measured; `look`: at which they were compared; `spreads`: metric -> over
    fresh seeds; `findings`: of the sanity checks, None if they were not made.
    """

    winner: TrialRow
    weights: Weights
    standard: Standard
    measured: Mapping[str, Measured]
    compared_with: int | None
    look: Look | None = None
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


def choose(case: Case, head: Head) -> list[Known]:
    """The candidates on the confirm sets, beside the unmodified CLIP and the reigning champion: the best first."""
    own = {trial_label(trial.number): _weights(trial) for trial in case.candidates}
    look = _counted(case, head)
    measured = measure(case, "confirm", {UNMODIFIED: None, **own, **_champion(case, head)})
    standard = standard_of(case.spec, case.preference, measured[UNMODIFIED].result)
    order = sorted(
        case.candidates, key=lambda trial: (*standard.rank(measured[trial_label(trial.number)].of), -trial.number)
    )
    return [Known(trial, _weights(trial), standard, measured, head.champion, look) for trial in reversed(order)]


def _counted(case: Case, head: Head) -> Look | None:
    """The look that this comparison is, counted before it happens; None without a champion to be compared with.

    The same checkpoints beside the same champion, measured the same way and compared by the same standard, are the same
    look.
    """
    if head.champion is None:
        return None
    evaluated, preference = partial(case.prover.evaluation_of, "confirm"), case.preference
    facts = {
        "candidates": sorted(evaluated(_weights(trial)) for trial in case.candidates),
        "champion": evaluated(_champion(case, head)[CHAMPION]),
        "goal": case.spec.goal.model_dump(mode="json"),
        "preference": None if preference is None else preference.model_dump(mode="json"),
        "seeds": case.seeds if case.spec.promote.ship == "median" else 0,
    }
    look = claim_look(case.site.bucket, case.model, facts, hypotheses=case.hypotheses)
    reach("promotion.look-counted")
    return look


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
    if not case.seeds:
        return known
    if case.order.dry_run:
        site.say("a dry run trains nothing: fresh seeds are left out")
        return known
    asked = fresh_seeds(case.study, case.trials, winner.number, case.seeds)
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
    """The gates, against the champion of now, which is measured if it is another one than before: another look."""
    if head.champion != known.compared_with:
        others = {label: each for label, each in known.measured.items() if label != CHAMPION}
        champion, look = _champion(case, head), _counted(case, head)
        found = {**others, **(measure(case, "confirm", champion) if champion else {})}
        known = replace(known, measured=found, compared_with=head.champion, look=look)
    measured, clip = known.measured, known.measured[UNMODIFIED]
    gates = decide(
        case.gates, known.standard, measured[known.label], clip, measured.get(CHAMPION), look=known.look,
        floors=resolved_floors(case.gates, known.standard, clip.result), spreads=known.spreads,
        findings=known.findings, provenance=lacking(known.winner), dirty=uncommitted(known.winner, provenance()),
        taken_back=taken_back(case.site.bucket, case.model, known.weights.sha256),
    )  # fmt: skip
    return known, tuple(_left_open(gate) if case.order.dry_run else gate for gate in gates)


def _left_open(gate: Gate) -> Gate:
    """What a dry run cannot decide."""
    if not gate.name.startswith("seed spread"):
        return gate
    return gate_of(gate.name, {**gate.numbers, "left_open": "a dry run trains nothing"})


def judge_finally(case: Case, known: Known, seen: Mapping[str, Measured] | None) -> tuple[Gate, ...]:
    """What the final sets say against the winner; `seen`: the winner and CLIP on them, None if nobody has looked."""
    floors = floors_of(case.spec, case.preference) if case.gates.floors is None else case.gates.floors
    models = None if seen is None else (seen[known.label], seen[UNMODIFIED])
    unseen = "the final sets were not looked at"
    return tuple(decide_finally(case.gates, known.standard, floors, models, unseen=unseen))
