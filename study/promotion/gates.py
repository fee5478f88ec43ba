"""The gates of a promotion as pure functions: numbers in, verdicts with their numbers out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from study.models.manifest import Gate, Verdict
from study.promotion.candidates import Standard
from study.results.ranking import Measurement
from study.results.rights import Rights, scores_of
from study.spec.promotion import GatesConfig, parse_floor
from study.statistics import Spread, bounded_difference
from study.store.rows import TrialRow
from trainers.evaluation.record import Finding
from trainers.schema.training import Metric

Outcome = Literal["promote", "keep", "refuse"]
IMPROVEMENT = "improvement"


@dataclass(frozen=True)
class Measured:
    """A model on the confirm sets."""

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
    floors: Mapping[Metric, float],
    spreads: Mapping[str, Spread] | None,
    findings: Sequence[Finding] | None,
    provenance: Sequence[str],
    dirty: Sequence[str],
    taken_back: str | None = None,
) -> list[Gate]:
    """Every gate's verdict on the candidate `own`.

    `floors`: least accuracies, resolved; `spreads`: metric -> over fresh seeds, if there were any; `findings`: of the
    sanity checks, None if they were not made; `provenance`: what is not on record; `dirty`: whose code is in no commit;
    `taken_back`: when and why this very checkpoint was rolled back from.
    """
    found = [_floor(metric, floor, own) for metric, floor in floors.items()]
    if gates.better_than_clip:
        found.append(_better_than_clip(standard, own, clip))
    for metric, margin in gates.non_inferior.items():
        found.append(_non_inferior(metric, margin, own, champion))
    if gates.improvement is not None:
        found.append(_improvement(gates, standard, own, champion))
    for metric, limit in gates.max_seed_spread.items():
        found.append(_spread(metric, limit, spreads))
    if gates.provenance:
        found.append(_of_list("provenance", provenance, "code, packages, machine, inputs", "complete"))
    if gates.clean_tree:
        found.append(_of_list("clean tree", dirty, "committed code only", "clean"))
    if gates.sanity is not None:
        found.append(_sanity(findings))
    if taken_back is not None:
        found.append(Gate("not taken back", "failed", taken_back, "a checkpoint that nobody rolled back from"))
    return found


def outcome_of(gates: Sequence[Gate]) -> tuple[Outcome, str]:
    """What follows, and why: a candidate that is no improvement leaves the champion in place without being at fault."""
    failed = [gate for gate in gates if gate.verdict == "failed"]
    against = [gate for gate in failed if gate.name != IMPROVEMENT and not gate.name.startswith("non-inferior")]
    if against:
        return "refuse", "; ".join(_sentence(gate) for gate in against)
    if any(gate.name == IMPROVEMENT for gate in failed):
        return "keep", next(_sentence(gate) for gate in failed if gate.name == IMPROVEMENT)
    if failed:
        return "refuse", "; ".join(_sentence(gate) for gate in failed)
    return "promote", "every gate is passed"


def _sentence(gate: Gate) -> str:
    return f"{gate.name}: {gate.found}, needed {gate.needed}"


def _verdict(passed: bool) -> Verdict:
    return "passed" if passed else "failed"


def _word(metric: str) -> str:
    return metric.removesuffix("_accuracy")


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def _floor(metric: Metric, floor: float, own: Measured) -> Gate:
    value = own.of(metric)
    numbers = {"value": value, "floor": floor}
    return Gate(f"floor {_word(metric)}", _verdict(value >= floor), _percent(value), f">= {_percent(floor)}", numbers)


def _better_than_clip(standard: Standard, own: Measured, clip: Measured) -> Gate:
    value, other = standard.value(own.of), standard.value(clip.of)
    numbers = {"value": value, "clip": other, "metric": standard.name}
    return Gate(
        "better than CLIP",
        _verdict(value > other),
        f"{standard.name} {_percent(value)}",
        f"> {_percent(other)}",
        numbers,
    )


def _non_inferior(metric: Metric, margin: float, own: Measured, champion: Measured | None) -> Gate:
    name, needed = f"non-inferior {_word(metric)}", f"< {100 * margin:.1f} points"
    if champion is None:
        return Gate(name, "not applicable", "there is no champion", needed, {"margin": margin})
    loss = bounded_difference(scores_of(champion.rights, metric), scores_of(own.rights, metric))
    found = f"champion - candidate {_points(loss.mean)}, at most {_points(loss.upper)} (95 %)"
    return Gate(name, _verdict(loss.upper < margin), found, needed, {**asdict(loss), "margin": margin})


def _improvement(gates: GatesConfig, standard: Standard, own: Measured, champion: Measured | None) -> Gate:
    rule = gates.improvement
    assert rule is not None
    what = "for certain " if rule.certain else ""
    needed = f"{what}> {100 * rule.by:.1f} points of {standard.name}"
    if champion is None:
        return Gate(IMPROVEMENT, "not applicable", "there is no champion", needed, {"by": rule.by})
    missed = standard.missing(champion.of)
    if missed > 0 and not standard.missing(own.of):
        numbers = {"champion_misses_floors_by": missed, "by": rule.by}
        return Gate(IMPROVEMENT, "passed", "the champion is below a floor here", needed, numbers)
    gain = bounded_difference(_values(standard, own), _values(standard, champion))
    passed = (gain.lower if rule.certain else gain.mean) > rule.by
    found = f"{_points(gain.mean)}, at least {_points(gain.lower)} (95 %)"
    return Gate(IMPROVEMENT, _verdict(passed), found, needed, {**asdict(gain), "by": rule.by, "certain": rule.certain})


def _values(standard: Standard, of: Measured) -> dict[str, Any]:
    """Set -> every image's share in the standard's value."""
    parts = {metric: scores_of(of.rights, metric) for metric in standard.weights}
    return {name: sum(w * parts[metric][name] for metric, w in standard.weights.items()) for name in of.rights}


def _spread(metric: Metric, limit: float, spreads: Mapping[str, Spread] | None) -> Gate:
    name, needed = f"seed spread {_word(metric)}", f"<= {100 * limit:.1f} points"
    spread = None if spreads is None else spreads.get(metric)
    if spread is None or spread.deviation is None:
        return Gate(name, "failed", "no fresh seeds were trained", needed, {"limit": limit})
    numbers = {"deviation": spread.deviation, "limit": limit, "seeds": spread.n}
    found = f"{100 * spread.deviation:.1f} points over {spread.n} seeds"
    return Gate(name, _verdict(spread.deviation <= limit), found, needed, numbers)


def _of_list(name: str, missing: Sequence[str], needed: str, fine: str) -> Gate:
    return Gate(name, _verdict(not missing), "; ".join(missing) or fine, needed, {"missing": list(missing)})


def _sanity(findings: Sequence[Finding] | None) -> Gate:
    needed = "no check of the evaluation fails"
    if findings is None:
        return Gate("sanity", "failed", "the checks were not made", needed)
    failed = [finding.name for finding in findings if finding.outcome == "failed"]
    passed = sum(finding.outcome == "passed" for finding in findings)
    found = f"failed: {', '.join(failed)} (docs/sanity.md)" if failed else f"{passed} passed"
    if not failed and passed < len(findings):
        found += f", {len(findings) - passed} not applicable"
    numbers = {"findings": [finding.model_dump(mode="json") for finding in findings]}
    return Gate("sanity", _verdict(not failed), found, needed, numbers)


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
