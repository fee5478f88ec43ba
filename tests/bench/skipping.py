"""What skipping settled images saves, and that it changes no verdict: the tiny CLIP's suite both ways, in one run.

    PYTHONPATH=. python tests/bench/skipping.py [--threads 1] [--samples 60] [--rounds 1] [--out FILE]

Every attack on every set is measured both ways, one after the other, in alternating order. Stated are the ratio of CPU
seconds (of this process; other work on the machine cannot change it much), of wall seconds, and of the images whose
logits were computed. The script fails if any reading of any image differs.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

import torch

from trainers.data import load_dataset
from trainers.evaluation.measure import measure
from trainers.evaluation.readings import READINGS
from trainers.evaluation.scorer import Scorer
from trainers.evaluation.verdicts import Verdicts, stratified_sample
from trainers.model.build import tokenizer_for
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.schema.suite import SUITES
from trainers.schema.training import ModelConfig


def same(one: Verdicts, other: Verdicts) -> bool:
    """Bit for bit, NaN like NaN."""
    pairs = ((getattr(one.attacked, name), getattr(other.attacked, name)) for name in READINGS)
    return all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--samples", type=int, default=60, help="images of each set")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    suite, _ = SUITES["tiny"]
    clip = load_clip(ModelConfig(arch="tiny-clip", pretrained="bundled"))
    model, tokenizer = RobustCLIP(clip), tokenizer_for(clip)
    rows: list[dict[str, Any]] = []
    for turn in range(given.rounds):
        for name in suite.datasets:
            image_set = load_dataset(name)
            index = stratified_sample(image_set.labels, given.samples, seed=suite.seed)
            scorer = Scorer(model, class_embeddings(clip, image_set.prompts(), tokenizer))
            for number, entry in enumerate(suite.attacks):
                found: dict[bool, Verdicts] = {}
                row: dict[str, Any] = {"dataset": name, "attack": entry.label, "images": len(index)}
                for skip in (True, False) if (turn + number) % 2 else (False, True):
                    scorer.rows, wall, cpu = 0, time.perf_counter(), time.process_time()
                    found[skip] = measure(scorer, image_set, index, entry, seed=suite.seed, skip=skip)
                    row["skipping" if skip else "all"] = {
                        "wall_seconds": time.perf_counter() - wall,
                        "cpu_seconds": time.process_time() - cpu,
                        "images_computed": scorer.rows,
                    }
                row["same_readings"] = same(found[True], found[False])
                row["clean_accuracy"] = float(found[True].right.float().mean())
                row["robust_accuracy"] = [float(each) for each in (~found[True].fooled).float().mean(1)]
                rows.append(row)
                print(json.dumps(row), file=sys.stderr, flush=True)
    ratios = {
        key: sum(row["all"][key] for row in rows) / sum(row["skipping"][key] for row in rows)
        for key in ("wall_seconds", "cpu_seconds", "images_computed")
    }
    result = {
        "what": "without skipping over with skipping, protocol strict, suite tiny",
        "ratios": ratios,
        "same_readings": all(row["same_readings"] for row in rows),
        "rows": rows,
        "command": " ".join(["python", *sys.argv]),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": given.threads,
        "date": time.strftime("%Y-%m-%d"),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.out:
        given.out.write_text(text + "\n")
    if not result["same_readings"]:
        sys.exit("skipping changed a reading")


if __name__ == "__main__":
    main()
