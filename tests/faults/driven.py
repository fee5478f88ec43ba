"""The `agft` command, where light trials may take the place of training: `python -m tests.faults.driven SECONDS ...`.

SECONDS is what an epoch of a light trial (`tests/support/light.py`) takes, 0 for real training. A driver that reaches
its study's end says how many placement groups Ray still holds.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import study.cli.here.study as here
from infra.cluster.cluster import placement_groups
from study.cli.main import main
from study.driver.run import Outcome, run_study
from tests.support.light import Plan, light

LEFT_OVER = "placement groups left over:"
PATIENCE_SECONDS = 20.0


def driven(seconds: float) -> Any:
    """`run_study` for the command: the same, with these trials, and the placement groups counted."""

    def run(*given: Any, **named: Any) -> Outcome:
        trials = {"trainable": light(Plan(scale=seconds))} if seconds else {}
        outcome = run_study(*given, **named, **trials)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (left := placement_groups()) and time.monotonic() < deadline:
            time.sleep(0.2)
        print(LEFT_OVER, len(left), flush=True)
        return outcome

    return run


if __name__ == "__main__":
    here.run_study = driven(float(sys.argv[1]))
    main(sys.argv[2:])
