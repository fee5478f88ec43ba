"""Early stopping where a front is searched: what rules would save, and what hypervolume they would cost.

    PYTHONPATH=. python tests/bench/search_pareto.py [--seeds 100] [--trials 64] [--out FILE]

Random search over the measured settings (`search_quality.py`, scene between), for clean and robust accuracy. A trial
is judged after every epoch from the second on, by the rule of knowledge with lag 5; one that is stopped never enters
the front. Hypervolume is the area, in squared points, that the front covers beyond 60 % of the unmodified CLIP's clean
accuracy and its robust accuracy. Draws do not depend on results, so a rule can only take trials away.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from study.search.samplers import uniform, value_at
from tests.bench.search_quality import LAG
from tests.bench.search_replay import specification
from tests.support.landscapes import COLOR_SHAPES, RESULTS, Table

Point = tuple[float, float]  # clean, robust
Runs = list[list[Point]]  # the point that a trial stands with after every epoch
Rule = Callable[[list[Point], int, list[list[Point]]], bool]  # own points, epoch, known trials' points


def points(curve: Any) -> list[Point]:
    """After every epoch the one with the largest mean so far, as a trial of several metrics stands."""
    found: list[Point] = []
    for clean, robust, _ in curve:
        better = not found or clean + robust > sum(found[-1])
        found.append((clean, robust) if better else found[-1])
    return found


def hypervolume(front: list[Point], origin: Point) -> float:
    """In squared points."""
    area, height = 0.0, origin[1]
    for clean, robust in sorted(front, key=lambda point: (-point[0], -point[1])):
        if clean > origin[0] and robust > height:
            area += (clean - origin[0]) * (robust - height)
            height = robust
    return 1e4 * area


def behind(margin: float) -> Rule:
    """A known trial was better at this epoch in both metrics by the margin."""

    def judged(own: list[Point], epoch: int, known: Runs) -> bool:
        there = [each[epoch - 1] for each in known if len(each) >= epoch]
        return any(all(b >= a + margin for a, b in zip(own[epoch - 1], other, strict=True)) for other in there)

    return judged


def hopeless(times: float) -> Rule:
    """Even with the largest gain that a known full-length trial had from here on, in each metric and so many times, a
    known trial's end is as good in both; with at least four of them."""

    def judged(own: list[Point], epoch: int, known: Runs) -> bool:
        full = [each for each in known if len(each) == EPOCHS]
        if len(full) < 4:
            return False
        gain = [max(each[-1][m] - each[epoch - 1][m] for each in full) for m in (0, 1)]
        best = [own[epoch - 1][m] + times * max(0.0, gain[m]) for m in (0, 1)]
        return any(all(b >= a for a, b in zip(best, each[-1], strict=True)) for each in full)

    return judged


EPOCHS = 6
RULES: dict[str, Rule] = {
    "dominated at the epoch": behind(0.0),
    "by 2 points in both": behind(0.02),
    "by 5 points in both": behind(0.05),
    "by 10 points in both": behind(0.10),
    "dominated even with the largest gain seen": hopeless(1.0),
    "with 1.5 times that gain": hopeless(1.5),
    "with twice that gain": hopeless(2.0),
}


def kept(runs: Runs, rule: Rule) -> Runs:
    """The trials as they are when the rule has judged them."""
    found: Runs = []
    for number, own in enumerate(runs):
        known = found[: max(0, number - LAG)]
        stop = next((epoch for epoch in range(2, len(own)) if rule(own, epoch, known)), len(own))
        found.append(own[:stop])
    return found


def searches(seeds: int, trials: int, table: Table) -> Iterator[Runs]:
    """Random search's draws, as the service keys them."""
    dimensions = specification("random", 0).dimensions()
    for seed in range(seeds):
        drawn = (
            {each.path: value_at(each.distribution, uniform(seed, number, each.path)) for each in dimensions}
            for number in range(trials)
        )
        yield [points(table.between(params)) for params in drawn]


def measured(seeds: int, trials: int) -> dict[str, Any]:
    """Of every rule: hypervolume lost (mean and worst of seeds), in how many seeds none was, and epochs saved."""
    clip = COLOR_SHAPES.clip()
    origin = (0.6 * clip.clean_accuracy, clip.robust_accuracy)

    def area(runs: Runs) -> float:
        return hypervolume([each[-1] for each in runs if len(each) == EPOCHS], origin)

    many = list(searches(seeds, trials, COLOR_SHAPES.table()))
    whole = [area(runs) for runs in many]
    found: dict[str, Any] = {"seeds": seeds, "trials": trials, "lag": LAG, "hypervolume": float(np.mean(whole))}
    found["rules"] = {}
    for name, rule in RULES.items():
        judged = [kept(runs, rule) for runs in many]
        lost = np.array([before - area(runs) for before, runs in zip(whole, judged, strict=True)])
        epochs = np.mean([sum(map(len, runs)) for runs in judged]) / (EPOCHS * trials)
        found["rules"][name] = {
            "lost": float(lost.mean()), "worst": float(lost.max()),
            "unharmed": int((lost < 1e-9).sum()), "saved": float(1 - epochs),
        }  # fmt: skip
    return found


def rows(found: dict[str, Any]) -> Iterator[str]:
    """The table of docs/search-quality.md."""
    yield "| a trial stops when it is | hypervolume lost, mean | worst seed | seeds without loss | epochs saved |"
    yield "| --- | ---: | ---: | ---: | ---: |"
    for name, row in found["rules"].items():
        shares = [f"{100 * row[key] / found['hypervolume']:.2f} %" for key in ("lost", "worst")]
        yield f"| {name} | {' | '.join(shares)} | {row['unharmed']} of {found['seeds']} | {100 * row['saved']:.0f} % |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS / "search-pareto.json")
    wanted = parser.parse_args()
    found = measured(wanted.seeds, wanted.trials)
    wanted.out.write_text(json.dumps(found, indent=1) + "\n")
    print("\n".join(rows(found)))


if __name__ == "__main__":
    main()
