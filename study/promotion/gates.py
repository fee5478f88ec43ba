"""The gates of a promotion as pure functions: models' numbers in, verdicts with their numbers out.

Here the numbers are put together; what they mean is said in `study.promotion.verdicts`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from study.models.manifest import Gate, Look
from study.promotion.candidates import Standard
from study.promotion.evidence import Scores, sums_of
from study.promotion.verdicts import BETTER, FINAL, FINAL_LEVEL, IMPROVEMENT, NON_INFERIOR, gate_of
from study.results.ranking import Measurement
from study.results.rights import Rights, scores_of
from study.spec.promotion import GatesConfig, parse_floor
from study.statistics import Spread
from study.store.rows import TrialRow
from trainers.evaluation.record import Finding
from trainers.schema.training import ACCURACIES, Metric

Outcome = Literal["promote", "keep", "refuse"]


@dataclass(frozen=True)
class Measured:
    """A model on the sets of a role."""

    label: str
    result: Measurement
    rights: Mapping[str, Rights]

    def of(self, metric: Metric) -> float:
        return float(self.result[metric])


def decide(
    gates: GatesConfig,
    standard: Standard,
    own: Measured,
    clip: Measured,
    champion: Measured | None,
    *,
    look: Look | None,
    floors: Mapping[Metric, float],
    spreads: Mapping[str, Spread] | None,
    findings: Sequence[Finding] | None,
    provenance: Sequence[str],
    dirty: Sequence[str],
    taken_back: str | None = None,
) -> list[Gate]:
    """Every gate's verdict on the candidate `own`, on the confirm sets.

    `look`: at which a candidate is compared with `champion`, None if there is none; `floors`: least accuracies,
    resolved; `spreads`: metric -> over fresh seeds, if there were any; `findings`: of the sanity checks, None if they
    were not made; `provenance`: what is not on record; `dirty`: whose code is in no commit; `taken_back`: when and why
    this very checkpoint was rolled back from.
    """
    assert (champion is None) == (look is None), "who is compared with a champion has a look"
    found = [gate_of(f"floor {_word(m)}", {"value": own.of(m), "floor": floor}) for m, floor in floors.items()]
    if gates.better_than_clip:
        values = {"value": standard.value(own.of), "clip": standard.value(clip.of), "metric": standard.name}
        found.append(gate_of(BETTER, values))
    for metric, margin in gates.non_inferior.items():
        compared = {}
        if champion is not None:
            compared = _compared(look, scores_of(champion.rights, metric), scores_of(own.rights, metric))
        found.append(gate_of(f"{NON_INFERIOR} {_word(metric)}", {"margin": margin, **compared}))
    if gates.improvement is not None:
        found.append(gate_of(IMPROVEMENT, _improvement(gates, standard, own, clip, champion, look)))
    for metric, limit in gates.max_seed_spread.items():
        spread = None if spreads is None else spreads.get(metric)
        seen = {} if spread is None else {"deviation": spread.deviation, "seeds": spread.n}
        found.append(gate_of(f"seed spread {_word(metric)}", {"limit": limit, **seen}))
    if gates.provenance:
        found.append(gate_of("provenance", {"missing": list(provenance)}))
    if gates.clean_tree:
        found.append(gate_of("clean tree", {"missing": list(dirty)}))
    if gates.sanity is not None:
        made = None if findings is None else [finding.model_dump(mode="json") for finding in findings]
        found.append(gate_of("sanity", {"findings": made}))
    if taken_back is not None:
        found.append(gate_of("not taken back", {"taken_back": taken_back}))
    return found


def decide_finally(
    gates: GatesConfig,
    standard: Standard,
    floors: Mapping[Metric, str],
    models: tuple[Measured, Measured] | None,
    *,
    unseen: str = "",
) -> list[Gate]:
    """What the final sets say against the winner, if `gates.final` lets them; `models`: the winner and CLIP on them.

    `floors`: as they are written, resolved against CLIP on the final sets; `unseen`: why nobody has looked there.
    """
    if not gates.final:
        return []
    found = []
    if gates.better_than_clip:
        numbers: dict[str, Any] = {"metric": standard.name, "unseen": unseen}
        if models is not None:
            own, clip = (_values(standard, each) for each in models)
            numbers = {"metric": standard.name, "sets": sums_of(own, clip), "level": FINAL_LEVEL}
        found.append(gate_of(f"{FINAL} {BETTER}", numbers))
    for metric, text in floors.items():
        if metric not in ACCURACIES:  # no mean over images, so never for certain below
            continue
        numbers = {"text": text, "unseen": unseen}
        if models is not None:
            numbers = {"text": text, "level": FINAL_LEVEL, **_above_floor(metric, text, *models)}
        found.append(gate_of(f"{FINAL} floor {_word(metric)}", numbers))
    return found


def outcome_of(gates: Sequence[Gate]) -> tuple[Outcome, str]:
    """What follows, and why: a candidate that is no improvement leaves the champion in place without being at fault."""
    failed = [gate for gate in gates if gate.verdict == "failed"]
    against = [gate for gate in failed if gate.name != IMPROVEMENT and not gate.name.startswith(NON_INFERIOR)]
    if against:
        return "refuse", sentences(against)
    if any(gate.name == IMPROVEMENT for gate in failed):
        return "keep", next(sentences([gate]) for gate in failed if gate.name == IMPROVEMENT)
    if failed:
        return "refuse", sentences(failed)
    return "promote", "every gate is passed"


def sentences(gates: Sequence[Gate]) -> str:
    """What each found and needed."""
    return "; ".join(f"{gate.name}: {gate.found}, needed {gate.needed}" for gate in gates)


def by_evidence(gates: Sequence[Gate]) -> bool:
    """Whether a promotion on these gates is what its look was there to show: an error of it is within the budget."""
    improvement = [gate for gate in gates if gate.name == IMPROVEMENT]
    if any(gate.verdict == "failed" for gate in gates):
        return False
    if improvement:
        return bool(improvement[0].numbers["certain"]) and "sets" in improvement[0].numbers
    return any(gate.name.startswith(NON_INFERIOR) and "sets" in gate.numbers for gate in gates)


def _word(metric: str) -> str:
    return metric.removesuffix("_accuracy")


def _compared(look: Look | None, one: Scores, other: Scores) -> dict[str, Any]:
    """What is kept of a comparison: the sums of its images' differences, and how sure one must be."""
    assert look is not None
    numbers = {"look": look.number, "hypotheses": look.hypotheses, "level": look.each}
    return {"sets": sums_of(one, other), **numbers}


def _improvement(
    gates: GatesConfig, standard: Standard, own: Measured, clip: Measured, champion: Measured | None, look: Look | None
) -> dict[str, Any]:
    rule = gates.improvement
    assert rule is not None
    numbers: dict[str, Any] = {"by": rule.by, "certain": rule.certain, "metric": standard.name}
    if champion is None:
        return numbers
    missed = standard.missing(champion.of)
    if missed > 0 and not standard.missing(own.of):
        if not rule.certain:
            return {**numbers, "champion_misses_floors_by": missed}
        numbers["champion_floors"] = {
            m: _above_floor(m, t, champion, clip) for m, t in standard.floors.items() if m in ACCURACIES
        }
    return {**numbers, **_compared(look, _values(standard, own), _values(standard, champion))}


def _above_floor(metric: Metric, text: str, own: Measured, clip: Measured) -> dict[str, Any]:
    """Sums of how far each image is above the floor, over `scale`, which keeps that within [-1, 1]."""
    floor = parse_floor(text)
    scale = max(1.0, 1 - floor.offset, floor.of_clip + floor.offset)
    scores = {name: each / scale for name, each in scores_of(own.rights, metric).items()}
    others = {
        name: (floor.of_clip * each + floor.offset) / scale for name, each in scores_of(clip.rights, metric).items()
    }
    numbers = {"scale": scale, "value": own.of(metric), "floor": floor.resolve(clip.of(metric))}
    return {"sets": sums_of(scores, others), **numbers}


def _values(standard: Standard, of: Measured) -> dict[str, Any]:
    """Set -> every image's share in the standard's value."""
    parts = {metric: scores_of(of.rights, metric) for metric in standard.weights}
    return {name: sum(w * parts[metric][name] for metric, w in standard.weights.items()) for name in of.rights}


def resolved_floors(gates: GatesConfig, standard: Standard, clip: Mapping[str, Any]) -> dict[Metric, float]:
    """Least accuracies on the confirm sets: those of the gates, else those of the standard."""
    if gates.floors is None:
        return dict(standard.at_least)
    return {metric: parse_floor(text).resolve(clip[metric]) for metric, text in gates.floors.items()}


# What is on record of a checkpoint's making, and what is not.

WANTED = ("code", "packages", "python", "hostname", "inputs")


def lacking(trial: TrialRow) -> list[str]:
    """What no attempt that trained anything should leave out, in words; nothing if the record is complete."""
    made = [attempt for attempt in trial.attempts if attempt.provenance]
    if not made:
        return ["no attempt says where and with what it ran"]
    found = []
    for attempt in made:
        record = attempt.provenance or {}
        missing = [name for name in WANTED if not record.get(name)]
        code = record.get("code") or {}
        if "code" not in missing and not (code.get("revision") or code.get("version")):
            missing.append("code revision")
        if missing:
            found.append(f"attempt {attempt.token} lacks {', '.join(missing)}")
    if trial.best is None:
        found.append("no checkpoint is on record")
    return found


def uncommitted(trial: TrialRow, promoting: Mapping[str, Any]) -> list[str]:
    """Where code that is in no commit took part, or where nobody knows."""
    records = [
        (f"attempt {attempt.token}", attempt.provenance or {}) for attempt in trial.attempts if attempt.provenance
    ]
    found = []
    for who, record in [*records, ("this promotion", promoting)]:
        code = record.get("code") or {}
        if code.get("revision") is None or code.get("dirty") is None:
            found.append(f"{who}: revision unknown")
        elif code["dirty"]:
            found.append(f"{who}: {str(code['revision'])[:8]} with changes")
    return found
