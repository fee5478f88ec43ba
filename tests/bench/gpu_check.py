"""What only a GPU can say: right there, as fast as the chip allows? One command, at most 8 minutes, no network, no Ray.

    make gpu-wheels                                     once, where packages can be had: into .gpu-wheels (under 40 MB)
    make gpu-check                                      on the machine with the GPU
    python tests/bench/gpu_check.py [--small] [--only NAME ...] [--seconds 460] [--out FILE]

Needs torch 2.11 or newer, open_clip and pydantic. The checks (`gpu_checks.py`) run in a process of their own; one that
fails, hangs or takes the device down with it is a line in the record, and the others go on in a new process. Every
figure is kept as soon as it is known, with the limit that the same machine showed beside it.
"""

from __future__ import annotations

import argparse
import json
import queue
import re
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests/bench/results"
SLOWER = 2.0  # a check may take so many times what it is said to need, and START_SECONDS, before it is ended
START_SECONDS = 60.0
NEEDS = {
    "machine": 5, "limits_of_the_machine": 10, "noise_is_the_cpus": 5, "collectives": 20, "a_run": 60, "step": 110,
    "evaluation": 60, "input_path": 40, "graphed_step": 100, "where_the_time_goes": 30, "large": 60,
}  # fmt: skip
"""Seconds that each check may need on one GPU, the most informative first."""
SAID = "gpu-check: "  # begins the lines that are ours


def main() -> int:
    """0 if every check ran and every yes-or-no was a yes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="toy sizes; also without a GPU")
    parser.add_argument("--only", nargs="*", metavar="NAME", help="these checks alone")
    parser.add_argument("--seconds", type=float, default=460, help="what does not fit into this is left out")
    parser.add_argument("--out", type=Path, help="the record; default: tests/bench/results, by device and date")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        return work(given.only or [], small=given.small, limits=json.load(sys.stdin))
    if unknown := set(given.only or ()) - set(NEEDS):
        print(f"no such check: {', '.join(sorted(unknown))}; there are {', '.join(NEEDS)}", file=sys.stderr)
        return 2
    if not given.small and not _gpu():
        print("no GPU that this torch can use; `--small` runs every check at toy sizes on a CPU", file=sys.stderr)
        return 2
    needs = {name: need for name, need in NEEDS.items() if not given.only or name in given.only}
    found = run(needs, small=given.small, until=time.monotonic() + given.seconds)
    record = {"date": datetime.now(UTC).strftime("%Y-%m-%d"), "commit": commit(), "command": command(), "checks": found}
    out = given.out or RESULTS / f"gpu-check-{slug(found)}-{record['date']}.json"
    out.write_text(json.dumps(record, indent=1) + "\n")
    print("\n".join(table(found)))
    print(f"\nrecord: {out}")
    return int(any(faults(answers) for answers in found.values()))


def _gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def run(needs: Mapping[str, float], *, small: bool, until: float) -> dict[str, dict[str, Any]]:
    """Answers by check. `until`: on the monotonic clock."""
    found: dict[str, dict[str, Any]] = {}
    waiting = dict(needs)
    while waiting:
        for name, need in list(waiting.items()):
            if time.monotonic() + need > until:
                found[name] = {"left out": f"may need {need:g} s, and there is not so much time left"}
                del waiting[name]
        if waiting:
            _one_process(waiting, found, small=small)
    return {name: found[name] for name in needs}


def _one_process(waiting: dict[str, float], found: dict[str, dict[str, Any]], *, small: bool) -> None:
    """Let a process take the waiting checks in turn, until it is through, or one of them ended it."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--work", *(["--small"] if small else []), "--only", *waiting],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    limits = found.get("limits_of_the_machine", {})
    best = {name: value["value"] for name, value in limits.items() if isinstance(value, dict)}
    json.dump(best, child.stdin)
    child.stdin.close()
    lines: queue.Queue[str] = queue.Queue()

    def listen(stream: Any) -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    threading.Thread(target=listen, args=(child.stdout,), daemon=True).start()
    began, spare = time.monotonic(), START_SECONDS
    while waiting:
        name = next(iter(waiting))
        allowed = began + spare + SLOWER * waiting[name] - time.monotonic()
        try:
            line = lines.get(timeout=max(0.0, allowed))
        except queue.Empty:
            line = None
        if not line:
            child.kill()
            ended = "hung, and was ended" if line is None else f"its process ended with code {child.wait()}"
            found.setdefault(name, {})["FAILED"] = ended
            print(f"{name}: {ended}", flush=True)
            del waiting[name]
            return
        if line.startswith(SAID):
            said = json.loads(line.removeprefix(SAID))
            found.setdefault(said["check"], {}).update(said["answers"])
            if said["done"]:
                del waiting[said["check"]]
                began, spare = time.monotonic(), 0.0
        print(line.removeprefix(SAID), end="", flush=True)
    child.wait()


def work(names: list[str], *, small: bool, limits: dict[str, float]) -> int:
    """In the process of the checks: one line of JSON for every answer."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests/bench")]
    import torch
    from gpu_checks import CHECKS, CUDA, SMALL, Figure, Sizes

    def plain(value: Any) -> Any:
        return asdict(value) if is_dataclass(value) and not isinstance(value, type) else value

    def say(name: str, answers: dict[str, Any], *, done: bool = False) -> None:
        said = {"check": name, "done": done, "answers": {key: plain(value) for key, value in answers.items()}}
        print(SAID + json.dumps(said, default=str), flush=True)

    if small:
        torch.set_num_threads(1)  # at toy sizes a second one only waits for the first
    for name in names:
        began = time.monotonic()
        try:
            for answers in CHECKS[name](SMALL if small else Sizes(), limits):
                say(name, answers)
                if name == "limits_of_the_machine":
                    limits |= {key: value.value for key, value in answers.items() if isinstance(value, Figure)}
        except Exception as error:
            where = traceback.format_exc()[-900:]
            say(name, {"FAILED": f"{type(error).__name__}: {error}"[:600], "where": where}, done=True)
            if "CUDA" in str(error) and not isinstance(error, torch.OutOfMemoryError):
                return 0  # the device may be lost to this process
        else:
            say(name, {"seconds": round(time.monotonic() - began, 1)}, done=True)
        if CUDA:
            torch.cuda.empty_cache()
    return 0


def faults(answers: dict[str, Any]) -> list[str]:
    """What a check found wrong: its failure, and every no."""
    return [name for name, value in answers.items() if value is False or name == "FAILED"]


def table(found: dict[str, dict[str, Any]]) -> list[str]:
    """The record for people: yes and no, and every figure with its limit."""
    rows = []
    for check, answers in found.items():
        rows.append(f"\n{check}")
        for name, value in answers.items():
            if name == "where":
                continue
            if isinstance(value, dict) and set(value) == {"value", "unit", "limit"}:
                limit = value["limit"]
                share = f"  {value['value'] / limit:.0%} of {limit:.4g}" if limit else ""
                rows.append(f"  {name:<42} {value['value']:>12.4g} {value['unit']}{share}")
            elif isinstance(value, bool):
                rows.append(f"  {name:<42} {'yes' if value else 'NO':>12}")
            else:
                rows.append(f"  {name:<42} {json.dumps(value, default=_short)[:200]}")
    return rows


def _short(value: Any) -> str:
    return str(value)[:60]


def slug(found: dict[str, dict[str, Any]]) -> str:
    """The device's name, fit for a file's."""
    return re.sub(r"[^a-z0-9]+", "-", str(found.get("machine", {}).get("device", "unknown")).lower()).strip("-")


def command() -> str:
    return " ".join(["python", str(Path(__file__).resolve().relative_to(ROOT)), *sys.argv[1:]])


def commit() -> str:
    """Of the code that was checked; `unknown` outside a repository."""
    asked = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


if __name__ == "__main__":
    sys.exit(main())
