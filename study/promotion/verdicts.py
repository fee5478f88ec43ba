"""What a gate says of its numbers: the one place where a verdict is derived, when it is given and when it is checked.

`gate_of(name, numbers)` needs no image, no model and no service: a gate on record can be derived again from itself
(`rederive`). Of a comparison the numbers hold, set by set, the sums of its images' differences
(`study.promotion.evidence`), and the level of its bound.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from study.models.manifest import Gate, Verdict
from study.promotion.evidence import bound, tally

BETTER, IMPROVEMENT, NON_INFERIOR = "better than CLIP", "improvement", "non-inferior"
FINAL = "final"  # how gates on the final sets begin
FINAL_LEVEL = 0.05  # they are looked at once, for one model
NO_CHAMPION = "there is no champion"
Numbers = Mapping[str, Any]


def gate_of(name: str, numbers: Numbers) -> Gate:
    """The gate with its verdict. `KeyError` if the numbers are not those of a gate of this name.

    Whatever follows from the others (means, bounds, tallies) is derived, whether it is among `numbers` or not.
    """
    kind = max((kind for kind in RULES if name == kind or name.startswith(f"{kind} ")), key=len, default=None)
    if kind is None:
        raise KeyError(f"no gate is called {name!r}; gates: {', '.join(RULES)}")
    gate = RULES[kind](name, {key: value for key, value in numbers.items() if key != "left_open"})
    if (reason := numbers.get("left_open")) is None:
        return gate
    return Gate(name, "not applicable", reason, gate.needed, {**gate.numbers, "left_open": reason})


def rederive(gate: Gate) -> Gate:
    """The same gate, from its name and numbers alone: equal to `gate` if nobody has changed either."""
    return gate_of(gate.name, gate.numbers)


def _verdict(passed: bool) -> Verdict:
    return "passed" if passed else "failed"


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.1f} points"


def _floor(name: str, numbers: Numbers) -> Gate:
    value, floor = numbers["value"], numbers["floor"]
    return Gate(name, _verdict(value >= floor), percent(value), f">= {percent(floor)}", dict(numbers))


def _better_than_clip(name: str, numbers: Numbers) -> Gate:
    value, other = numbers["value"], numbers["clip"]
    found = f"{numbers['metric']} {percent(value)}"
    return Gate(name, _verdict(value > other), found, f"> {percent(other)}", dict(numbers))


def _derived(numbers: Numbers) -> dict[str, Any]:
    """A comparison's numbers with its mean and its bounds at its level."""
    return {**numbers, **tally(numbers["sets"]), **asdict(bound(numbers["sets"], numbers["level"]))}


def _sure(numbers: Numbers) -> str:
    """How sure a bound is, and which look it is of: `98.75 %, look 2`."""
    look = f", look {numbers['look']}" if "look" in numbers else ""
    return f"{100 * (1 - numbers['level']):.6g} %{look}"


def _non_inferior(name: str, numbers: Numbers) -> Gate:
    needed = f"< {100 * numbers['margin']:.1f} points"
    if "sets" not in numbers:
        return Gate(name, "not applicable", NO_CHAMPION, needed, dict(numbers))
    loss = _derived(numbers)
    found = f"champion - candidate {_points(loss['mean'])}, at most {_points(loss['upper'])} ({_sure(loss)})"
    return Gate(name, _verdict(loss["upper"] < loss["margin"]), found, needed, loss)


def _improvement(name: str, numbers: Numbers) -> Gate:
    by, certain = numbers["by"], numbers["certain"]
    needed = f"{'for certain ' if certain else ''}> {100 * by:.1f} points of {numbers['metric']}"
    if numbers.get("champion_misses_floors_by", 0.0) > 0:
        return Gate(name, "passed", "the champion is below a floor here", needed, dict(numbers))
    if any(_is_below(above, numbers["level"]) for above in numbers.get("champion_floors", {}).values()):
        found = f"the champion is for certain below a floor here ({_sure(numbers)})"
        return Gate(name, "passed", found, needed, dict(numbers))
    if "sets" not in numbers:
        return Gate(name, "not applicable", NO_CHAMPION, needed, dict(numbers))
    gain = _derived(numbers)
    at_least = f"at least {_points(gain['lower'])} ({_sure(gain)})"
    found = f"{_points(gain['mean'])}, {at_least}"
    if not certain:
        found = f"{_points(gain['mean'])}; evidence was not asked for (certain: false): {at_least}"
    return Gate(name, _verdict(gain["lower" if certain else "mean"] > by), found, needed, gain)


def _final_better(name: str, numbers: Numbers) -> Gate:
    """Of the goal's value, candidate less CLIP."""
    needed = f"more than CLIP's {numbers['metric']}, for certain"
    if "sets" not in numbers:
        return Gate(name, "not applicable", numbers["unseen"], needed, dict(numbers))
    gain = _derived(numbers)
    found = f"{_points(gain['mean'])}, at least {_points(gain['lower'])} ({_sure(gain)})"
    return Gate(name, _verdict(gain["lower"] > 0), found, needed, gain)


def _final_floor(name: str, numbers: Numbers) -> Gate:
    """Of how far the candidate is above the floor, over `scale`."""
    if "sets" not in numbers:
        return Gate(name, "not applicable", numbers["unseen"], numbers["text"], dict(numbers))
    above = _derived(numbers)
    most = min(1.0, above["floor"] + above["upper"] * above["scale"])
    found = f"{percent(above['value'])}, at most {percent(most)} ({_sure(above)})"
    needed = f"not for certain below {percent(above['floor'])} ({above['text']})"
    return Gate(name, _verdict(not _is_below(above, above["level"])), found, needed, above)


def _is_below(above: Numbers, level: float) -> bool:
    """Is the model below its floor for certain?"""
    return bound(above["sets"], level).upper < 0


def _spread(name: str, numbers: Numbers) -> Gate:
    needed = f"<= {100 * numbers['limit']:.1f} points"
    deviation = numbers.get("deviation")
    if deviation is None:
        return Gate(name, "failed", "no fresh seeds were trained", needed, dict(numbers))
    found = f"{100 * deviation:.1f} points over {numbers['seeds']} seeds"
    return Gate(name, _verdict(deviation <= numbers["limit"]), found, needed, dict(numbers))


def _of_list(needed: str, fine: str) -> Callable[[str, Numbers], Gate]:
    def gate(name: str, numbers: Numbers) -> Gate:
        missing = numbers["missing"]
        return Gate(name, _verdict(not missing), "; ".join(missing) or fine, needed, dict(numbers))

    return gate


def _sanity(name: str, numbers: Numbers) -> Gate:
    needed = "no check of the evaluation fails"
    findings = numbers["findings"]
    if findings is None:
        return Gate(name, "failed", "the checks were not made", needed, dict(numbers))
    failed = [finding["name"] for finding in findings if finding["outcome"] == "failed"]
    passed = sum(finding["outcome"] == "passed" for finding in findings)
    found = f"failed: {', '.join(failed)} (docs/sanity.md)" if failed else f"{passed} passed"
    if not failed and passed < len(findings):
        found += f", {len(findings) - passed} not applicable"
    return Gate(name, _verdict(not failed), found, needed, dict(numbers))


def _taken_back(name: str, numbers: Numbers) -> Gate:
    return Gate(name, "failed", numbers["taken_back"], "a checkpoint that nobody rolled back from", dict(numbers))


RULES: dict[str, Callable[[str, Numbers], Gate]] = {
    "floor": _floor,
    BETTER: _better_than_clip,
    NON_INFERIOR: _non_inferior,
    IMPROVEMENT: _improvement,
    "seed spread": _spread,
    "provenance": _of_list("code, packages, machine, inputs", "complete"),
    "clean tree": _of_list("committed code only", "clean"),
    "sanity": _sanity,
    "not taken back": _taken_back,
    f"{FINAL} {BETTER}": _final_better,
    f"{FINAL} floor": _final_floor,
}
