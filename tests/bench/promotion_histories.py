"""How often a champion is replaced wrongly: histories of promotions of one model name, judged by the gates themselves.

`python tests/bench/promotion_histories.py [--histories 1000] [--out FILE]` writes a JSON result. In a history, 20 looks
follow each other, each with k candidates, all at the same images of two confirm sets. An image has a difficulty that
all models share; what a model adds of its own decides on how many images two models differ. Candidates are, in truth,

* `equal`: as good as the champion; gates as they come, which ask for an improvement;
* `worse`: 3 points of robust accuracy worse, which is the margin; the gates ask for non-inferiority only;
* `mixed`: 4 points better in one look of five, else as good as the champion of then; gates as they come.

A history is wrong if a champion was ever replaced by one that is, in truth, no better (`worse`: that is inferior).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from study.models.looks import BUDGET, level_of
from study.models.manifest import Look
from study.promotion.candidates import Standard
from study.promotion.gates import Measured, by_evidence, decide, outcome_of
from study.results.rights import Rights, measurement
from study.spec.promotion import GatesConfig

STANDARD = Standard({"robust_accuracy": 1.0}, {})
CLEAN, ROBUST, MARGIN, BETTER = 0.80, 0.50, 0.03, 0.04  # accuracies, and points of 1
OWN = 0.25  # share of a model's own in what decides whether an image is right
AS_THEY_COME = GatesConfig.model_validate({"sanity": None})
NOT_INFERIOR = GatesConfig.model_validate({"sanity": None, "improvement": None})
NO_EVIDENCE = GatesConfig.model_validate({"sanity": None, "improvement": {"certain": False}, "non_inferior": {}})
GATES = {"equal": AS_THEY_COME, "worse": NOT_INFERIOR, "mixed": AS_THEY_COME}


@dataclass(frozen=True)
class Told:
    """Of one history: promotions, those that were wrong, looks at truly better candidates, and how many won."""

    promoted: int
    wrong: int
    chances: int
    taken: int
    differing: float


@dataclass(frozen=True)
class Model:
    """A measured model, and how good it is in truth, in points of robust accuracy above the first champion."""

    measured: Measured
    truth: float


def confirm_sets(rng: np.random.Generator, sizes: Sequence[int]) -> list[NDArray[np.float64]]:
    """Every image's difficulty, a standard normal number."""
    return [rng.standard_normal(size) for size in sizes]


def model(rng: np.random.Generator, sets: Sequence[NDArray[np.float64]], truth: float) -> Model:
    """Right where difficulty and what is its own stay below a threshold; robust below a lower one."""
    rights = {}
    clean, robust = (NormalDist().inv_cdf(share) for share in (CLEAN, ROBUST + truth))
    for number, difficulty in enumerate(sets):
        felt = np.sqrt(1 - OWN) * difficulty + np.sqrt(OWN) * rng.standard_normal(len(difficulty))
        rights[f"set {number}"] = Rights(np.arange(len(felt)), felt < clean, ("4/255",), (felt < robust)[None])
    return Model(Measured("model", measurement(rights), rights), truth)


def history(
    rng: np.random.Generator,
    kind: str,
    *,
    k: int,
    gates: GatesConfig,
    sizes: Sequence[int],
    looks: int = 20,
    counted: bool = True,
) -> Told:
    """One history, as a promotion decides: the best first, the next one if it is refused.

    `counted`: as it is; else every bound holds at 95 %, as if each look were the only one and nobody had chosen.
    """
    sets = confirm_sets(rng, sizes)
    clip = model(rng, sets, -0.3)
    champion = model(rng, sets, 0.0)
    before: float | None = None
    promoted = wrong = chances = taken = 0
    differing: list[float] = []
    for number in range(1, looks + 1):
        better = kind == "mixed" and number % 5 == 3
        step = {"equal": 0.0, "worse": -MARGIN, "mixed": BETTER if better else 0.0}[kind]
        found = [model(rng, sets, champion.truth + step) for _ in range(k)]
        found.sort(key=lambda each: STANDARD.rank(each.measured.of), reverse=True)
        look = Look(number=number, level=level_of(number, before=before), hypotheses=k)
        if not counted:
            look = Look(number=number, level=BUDGET, hypotheses=1)
        chances += better
        before = None
        for candidate in found:
            verdicts = decide(
                gates, STANDARD, candidate.measured, clip.measured, champion.measured, look=look, floors={},
                spreads=None, findings=None, provenance=[], dirty=[],
            )  # fmt: skip
            compared = next((gate.numbers for gate in verdicts if "sets" in gate.numbers), None)
            if compared is not None:
                differing.append((compared["better"] + compared["worse"]) / compared["images"])
            outcome, _ = outcome_of(verdicts)
            if outcome == "keep":
                break
            if outcome == "promote":
                promoted, wrong, taken = promoted + 1, wrong + (not better), taken + better
                before = look.level if by_evidence(verdicts) else None
                champion = candidate
                break
        if kind == "worse" and wrong:
            break  # what is inferior to an inferior champion is another question
    return Told(promoted, wrong, chances, taken, float(np.mean(differing)) if differing else float("nan"))


def histories(kind: str, *, k: int, count: int, sizes: Sequence[int], seed: int = 0) -> dict[str, Any]:
    """Many of them, summed up."""
    told = [
        history(np.random.default_rng([seed, k, place]), kind, k=k, gates=GATES[kind], sizes=sizes)
        for place in range(count)
    ]
    chances = sum(each.chances for each in told)
    return {
        "candidates": kind, "k": k, "histories": count, "images": list(sizes),
        "differing": round(float(np.nanmean([each.differing for each in told])), 4),
        "wrong": sum(each.wrong > 0 for each in told) / count,
        "better_promoted": sum(each.taken for each in told) / chances if chances else None,
    }  # fmt: skip


def main() -> None:
    """All kinds, k = 1 to 5; a line each, and a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--histories", type=int, default=1000)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 1000])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "promotion-histories.json")
    asked = parser.parse_args()
    rows = []
    for kind in GATES:
        for k in range(1, 6):
            rows.append(histories(kind, k=k, count=asked.histories, sizes=asked.images))
            print(json.dumps(rows[-1]), flush=True)
    result = {"command": f"--histories {asked.histories}", "looks": 20, "seed": 0, "rows": rows}
    asked.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
