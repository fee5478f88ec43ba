"""CPU seconds of one proposal by a sampler that models: four numbers, a floor, five trials pending.

    PYTHONPATH=. OMP_NUM_THREADS=1 python tests/bench/proposal_cost.py [--trials 20 --trials 60] [--out FILE]

By the service's own proposer, over trials whose parameters are draws and whose values are a bowl's. The first proposal
of a sampler imports what it needs, and is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import time
from dataclasses import replace
from pathlib import Path

from study.search.proposals import Proposer, pending
from study.store.rows import TrialRow
from tests.bench.golden import processor
from tests.bench.search_replay import seen, specification

LAG, PROPOSALS = 5, 3


def rows_of(trials: int) -> dict[int, TrialRow]:
    """Full-length trials, drawn at random; the better the nearer to the middle of every range."""
    spec = specification("random", 0)
    goal, proposer, rows = spec.goal.at({"clean_accuracy": 0.5}), Proposer(spec, spec.goal.at({}), ()), {}
    for number in range(trials + LAG + PROPOSALS):
        proposal = proposer.propose(rows, number, LAG)
        ratio = proposal.params["method.scale_ratio"]
        records = seen(((0.9 - 0.4 * ratio, 0.3 - (ratio - 0.8) ** 2 / 4, 1.0),) * 6, goal).records
        rows[number] = replace(pending(proposal), state="complete", epochs=records)
    return rows


def seconds_of(sampler: str, trials: int) -> list[float]:
    """CPU seconds of a few proposals, each knowing so many trials."""
    spec, rows, found = specification(sampler, 0), rows_of(trials), []
    for number in range(trials + LAG, trials + LAG + PROPOSALS):
        before = {other: rows[other] for other in range(number)}
        proposer = Proposer(spec, spec.goal.at({"clean_accuracy": 0.5}), ())
        began = time.process_time()
        proposer.propose(before, number, LAG)
        found.append(time.process_time() - began)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, action="append")
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    record = {
        "commit": commit,
        "processor": processor(),
        "cpus": os.cpu_count(),
        "load": os.getloadavg()[0],
        "lag": LAG,
        "seconds": {},
    }
    for sampler in ("TPE", "GP"):
        seconds_of(sampler, 12)
        record["seconds"][sampler] = {
            str(trials): statistics.median(seconds_of(sampler, trials)) for trials in wanted.trials or (20, 60, 200)
        }
        print(sampler, record["seconds"][sampler], flush=True)
    if wanted.out:
        wanted.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
