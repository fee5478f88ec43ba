"""The fault suite: every fault at random moments into real studies, and what became of them.

    python -m tests.faults.suite --seed 7 [--only NAME ...] [--light 10] [--nested 2] [--seconds 600] [--write]

Real drivers, Ray, SeaweedFS, MLflow, SQLite and PostgreSQL; light trials (`tests/support/light.py`) or real training of
the tiny CLIP. `--write` keeps the results in `tests/bench/results/reliability.json`, a fault's newest in place of those
before, and writes `docs/reliability.md` from that file. Disks, clock and network need root.
"""

from __future__ import annotations

import argparse
import logging
import math
import random
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path

from infra.provenance import code_revision
from infra.services import Services, use
from tests.faults import page
from tests.faults.injections import FAULTS
from tests.faults.ordeal import Reference, Result, endure, undisturbed
from tests.faults.stage import KINDS, Kind, service_home, stage


def suffer(
    folder: Path, services: Services, name: str, kind: Kind, known: Reference, wanted: argparse.Namespace
) -> Result:
    """One fault on one kind of trials, at moments that the seed decides, as far as machines allow."""
    fault, moments = FAULTS[name], random.Random(f"{wanted.seed}/{name}/{kind.name}")
    try:
        with stage(folder, services, kind, moments, known.baseline) as made, fault.setting(made):
            return endure(made, name, fault, getattr(wanted, kind.name), known, seconds=wanted.seconds,
                          trials=wanted.trials)  # fmt: skip
    except Exception as error:  # the other faults have their turn all the same
        traceback.print_exc()
        return Result(name, kind.name, violations=[f"the suite itself failed: {type(error).__name__}: {error}"])


def line(result: Result) -> str:
    """As it is printed."""
    said = result.record()
    lost = "" if said["lost_median"] is None else f"  lost {said['lost_median']} s, at most {said['lost_worst']} s"
    bad = "".join(f"\n    {each}" for each in result.violations)
    return (
        f"{result.fault:22} {result.kind:6} {result.times:>3} times  {result.completed}/{result.studies} studies"
        f"  {result.drivers} drivers  {result.seconds:.0f} s{lost}  violations {len(result.violations)}{bad}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--only", nargs="+", choices=FAULTS, metavar="NAME", help=", ".join(FAULTS))
    parser.add_argument("--light", type=int, default=10, help="times a fault strikes studies of light trials")
    parser.add_argument("--nested", type=int, default=2, help="times a fault strikes studies of real training")
    parser.add_argument("--seconds", type=float, default=math.inf, help="for how long a fault strikes at most")
    parser.add_argument("--trials", type=int, default=0, help="of each study, where it is not to be as usual")
    parser.add_argument("--keep", type=Path, help="a folder for what drivers printed")
    parser.add_argument("--write", action="store_true")
    wanted = parser.parse_args()
    bad, commit = 0, _commit()  # of the code as it is loaded
    names = wanted.only or [name for name, fault in FAULTS.items() if not fault.by_name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # and everything that was started ends
    with service_home() as (folder, services):
        use(services)
        logging.getLogger("agft.tracking").setLevel(logging.ERROR)  # simulated studies have no MLflow
        for kind in KINDS.values():
            chosen = [name for name in names if kind.name in FAULTS[name].kinds]
            if not chosen or not getattr(wanted, kind.name):
                continue
            known = undisturbed(folder, services, kind)
            for name in chosen:
                result = suffer(folder, services, name, kind, known, wanted)
                print(line(result), flush=True)
                bad += len(result.violations)
                if wanted.write and result.studies:
                    page.keep({**result.record(), "seed": wanted.seed, "commit": commit, "day": _today()})
                if wanted.keep:
                    wanted.keep.mkdir(parents=True, exist_ok=True)
                    for log in folder.glob("*.log"):
                        shutil.copy(log, wanted.keep)
    if wanted.write:
        page.write()
    return min(bad, 1)


def _commit() -> str:
    code = code_revision()
    return str(code["revision"])[:10] + ("+" if code["dirty"] else "")


def _today() -> str:
    return time.strftime("%Y-%m-%d", time.gmtime())


if __name__ == "__main__":
    raise SystemExit(main())
