"""Numbers that must stay: losses of every method, counts of every attack, proposals and verdicts of a study.

    python tests/bench/golden.py --write tests/golden/numbers.json    # from a commit whose numbers are right
    python tests/bench/golden.py                                      # compares, and names every difference

On the kind of machine that wrote the file (its torch, CPU and instruction set) every bit must be the same. On another
kind sums are added in another order, and signs of gradients near 0 flip, so that runs drift apart: losses agree to
`EARLY_TOLERANCE` for `EARLY` updates and to `LATE_TOLERANCE` after them, counts to `IMAGES_TOLERANCE` images, and
hashes are not compared. Proposals and verdicts are double precision on one core: the same everywhere.

The file's study was written with the rule of knowledge (`study.search.knowledge`), it alone (`--write FILE --study`),
at the commit that `made.study_commit` names. Losses, hashes and counts are older, and were left as they were.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from torch import Tensor

from study.search import knowledge
from study.search.proposals import Proposer, given
from study.search.stopping import rungs, verdict
from study.spec.config import StudyConfig
from study.spec.dimension import apply_params
from study.spec.files import parse_study
from study.store.store import StudyStore
from trainers.attacks import EVAL_ATTACKS
from trainers.data import load_dataset
from trainers.evaluation.measure import measure
from trainers.evaluation.readings import READINGS
from trainers.evaluation.scorer import Scorer
from trainers.evaluation.verdicts import count, stratified_sample
from trainers.model.build import tokenizer_for
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.objectives import METHODS
from trainers.schema.records import Decision, EpochRecord, Measurement, Report
from trainers.schema.suite import AttackAt
from trainers.schema.training import Goal, ModelConfig
from trainers.training.loop import train
from trainers.training.run import LATEST
from trainers.training.state import load_state
from trainers.trial_config import TrialConfig

FILE = Path(__file__).parents[1] / "golden" / "numbers.json"
# Relative, and absolute below 1. Found between AVX-512 and torch's plainest code on one CPU (attacks' signs in FARE and
# TGA-ZSR drift most): 2e-5 in the first five updates, 7e-4 in all twenty.
EARLY, EARLY_TOLERANCE, LATE_TOLERANCE = 5, 1e-4, 5e-3
IMAGES_TOLERANCE = 1
THREADS = 1
Record = dict[str, Any]

# --- training --------------------------------------------------------------------------------------------------------

TINY = {"arch": "tiny-clip", "pretrained": "bundled"}
STEPS = 20  # in two epochs, so that an epoch's end, its evaluation and its files lie within


RUNS: dict[str, Record] = {name: {"method": {"name": name}} for name in METHODS} | {
    "agft, options": {
        "method": {"name": "agft", "attack_on": "total", "label_weight": 0.5, "feature_weight": 2.0},
        "attack": {"norm": "l2", "eps": 0.3, "step_size": 0.2, "restarts": 2, "momentum": 0.9},
        "train": {"optimizer": {"name": "adamw", "lr": 1e-4, "weight_decay": 0.01}, "ema": 0.9, "accumulation": 2},
    }
}  # with the methods' defaults; then much of what a study may change


def training(key: str) -> Record:
    """Every loss of `STEPS` updates of one of `RUNS`, and the hashes of what the run then is."""
    run = RUNS[key]
    plain = {
        "epochs": 2, "batch_size": 8, "samples_per_epoch": 8 * STEPS // 2, "threads": THREADS,
        "teacher_cache": False,  # computed here, and not found on disk
        "optimizer": {"name": "sgd", "lr": 1e-3}, "clip_grad_norm": 1.0,
    }  # fmt: skip
    config = TrialConfig.model_validate(
        {
            "model": TINY,
            "method": run["method"],
            "attack": run.get("attack", {"eps": "4/255", "steps": 2}),
            "data": {"train": "tiny-color-shapes"},
            "train": plain | run.get("train", {}),
            "evaluate": {
                "name": "dev",
                "datasets": ["tiny-digits"],
                "attacks": [{"attack": {"name": "pgd", "steps": 2}, "eps": ["2/255"], "samples": 20}],
            },
            "seed": 11,
        }
    )
    losses: dict[str, list[float]] = {}

    def observe(step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            losses.setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory() as folder:
        found = train(config, report=lambda _: Decision.CONTINUE, workdir=Path(folder), observe=observe)
        state = load_state(Path(folder) / LATEST)
    counts = [score.model_dump() for record in found.history for score in record.datasets["tiny-digits"].values()]
    return {
        "losses": losses,
        "counts": {name: [each[name] for each in counts] for name in ("correct", "robust", "total")},
        "weights_sha256": digest(state.model),
        "optimizer_sha256": digest(state.update),
    }


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes, in the order of the names."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        array = value.detach().cpu().contiguous().numpy()
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()


# --- evaluation ------------------------------------------------------------------------------------------------------

EPS = {"linf": (1 / 255, 3 / 255), "l2": (0.1, 0.3)}
STRONG = {"linf": (4 / 255,), "l2": (0.6,)}  # an image that survives costs thousands of queries
QUICK: dict[str, Record] = {  # settings that take seconds; the other attacks run with their defaults
    "pgd": {"steps": 4, "restarts": 2},
    "cw": {"steps": 4},
    "mi-fgsm": {"steps": 4},
    "di-fgsm": {"steps": 4},
    "ti-fgsm": {"steps": 4},
    "apgd-ce": {"steps": 6},
    "apgd-dlr": {"steps": 6},
    "apgd-t": {"steps": 4, "targets": 2},
    "square": {"queries": 60},
    "transfer": {"attack": "pgd", "settings": {"steps": 4}},
    "apgd": {"steps": 4, "targets": 2},
    "ensemble": {"steps": 3, "targets": 2, "queries": 6},
    "aa-agft": {"steps": 4},
    "eot-pgd": {"steps": 4, "draws": 2},
    "spsa": {"steps": 4, "probes": 4},
    "adaptive": {"steps": 3, "draws": 2, "probes": 2},
}
IMAGES = 24
FEWER = {"autoattack": 6}  # images of what cannot be made quick, and fools all of them
ATTACKS = {f"{name} {norm}": (name, norm) for name, row in EVAL_ATTACKS.items() for norm in row.norms}


def evaluation(key: str) -> Record:
    """Counts, and hashes of verdicts and readings, of one attack of `ATTACKS`."""
    name, norm = ATTACKS[key]
    parameters = EVAL_ATTACKS[name].model_validate(QUICK.get(name, {}))
    eps = (STRONG if name in FEWER else EPS)[norm]
    entry = AttackAt(attack=parameters, norm=norm, eps=eps)
    images = load_dataset("tiny-digits")
    with one_thread():
        sample = stratified_sample(images.labels, FEWER.get(name, IMAGES), seed=5)
        verdicts = measure(scorer(), images, sample, entry, seed=5, original=scorer(), surrogate=scorer(other=True))
    found = count(verdicts)
    parts = {"index": verdicts.index, "label": verdicts.label}
    readings = {
        f"{kind}.{reading}": getattr(getattr(verdicts, kind), reading)
        for kind in ("clean", "attacked")
        for reading in READINGS
    }
    return {
        "counts": {"total": found.n, "clean": found.clean_correct, "robust": list(found.robust_correct)},
        "verdicts_sha256": digest(parts | {name: t for name, t in readings.items() if name.endswith("prediction")}),
        "readings_sha256": digest(readings),
    }


@cache
def scorer(*, other: bool = False) -> Scorer:
    """The tiny CLIP over the digits; `other`: with weights off by 3 %, to transfer attacks from."""
    clip = load_clip(ModelConfig.model_validate(TINY))
    classes = class_embeddings(clip, load_dataset("tiny-digits").prompts(), tokenizer_for(clip))
    model = RobustCLIP(clip)
    if other:
        with torch.no_grad():
            for parameter in model.visual.parameters():
                flat = parameter.view(-1)
                flat[::2] *= 1.03
                flat[1::2] *= 0.97
    return Scorer(model, classes)


@contextmanager
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# --- a study ---------------------------------------------------------------------------------------------------------

TRIALS, LAG = 30, 3
STUDY = f"""\
name: golden
model: {{arch: tiny-clip, pretrained: bundled}}
method: {{name: agft, logit_scale: {{of_model: 1.0}}, scale_ratio: 0.8}}
attack: {{name: pgd, eps: 4/255, steps: 2}}
data: {{train: tiny-color-shapes, dev: [tiny-shapes], confirm: [tiny-colors], final: [tiny-letters]}}
train: {{epochs: 9, batch_size: 64, optimizer: {{name: adamw, lr: 5e-4}}}}
search:
  method.scale_ratio: {{low: 0.2, high: 1.4}}
  method.logit_scale: {{of_model: {{low: 0.5, high: 2.0}}}}
  attack.eps: {{choices: [2/255, 4/255, 8/255]}}
  attack.steps: {{low: 1, high: 6}}
  train.optimizer.lr: {{low: 1e-5, high: 1e-1, log: true}}
sampler: {{name: tpe, startup_trials: 8}}
scheduler: {{name: asha, grace_fraction: 0.3, reduction_factor: 2}}
goal: {{metric: robust_accuracy, subject_to: {{clean_accuracy: ">= clip * 0.8"}}}}
lag: {LAG}
budget: {{trials: {TRIALS}}}
seed: 7
"""
BASELINE = Measurement(clean_accuracy=0.70, robust_accuracy=0.22, datasets={})


def study() -> list[Record]:
    """Parameters, verdicts and end of every trial of a study, one trial at a time, as a driver takes its steps.

    The store, proposals, what a trial knows and its verdicts are the service's own; only the training is a closed form.
    """
    spec = parse_study(STUDY, source="golden")
    with tempfile.TemporaryDirectory() as folder:
        store = StudyStore(f"sqlite:///{folder}/studies.db", spec.name)
        store.create(spec)
        token = store.acquire("golden|1|1.00|m.b.1", seconds=3600)
        store.set_study(token, baseline=BASELINE)
        goal = spec.goal.resolve(BASELINE)
        proposer = Proposer(spec, goal, given(spec, spec.dimensions()))
        found = [_trial(number, spec, goal, store, proposer, token) for number in range(spec.budget.trials)]
        store.engine.dispose()
    return found


def _trial(
    number: int, spec: StudyConfig, goal: Goal, store: StudyStore, proposer: Proposer, token: int
) -> Record:  # fmt: skip
    rows = {row.number: row for row in store.trials()}
    proposal = proposer.propose(rows, number, LAG)
    plain = apply_params(spec.base(goal), proposal.params, spec.dimensions())
    config = TrialConfig.model_validate(plain).model_dump(mode="json")
    row = store.start_trial(token, proposal, config)
    verdicts, state = {}, "complete"
    for record in _history(config, goal):
        row = store.record(token, row, Report(epoch=record.epoch, records=(record,)), device_seconds=0.0)
        if record.epoch not in rungs(spec.scheduler, spec.train.epochs):
            continue
        known = knowledge.known(rows, number, LAG)
        decision, reason = verdict(spec.scheduler, row, known, epoch=record.epoch, goal=goal)
        store.decide(token, number, record.epoch, decision, reason)
        verdicts[f"epoch {record.epoch}"] = [decision, reason]
        if decision == "stop":
            state = "pruned"
            break
    store.finish_trial(token, number, state)
    return {"number": number, "params": proposal.params, "verdicts": verdicts, "state": state}


def _history(config: Record, goal: Goal) -> list[EpochRecord]:
    """Accuracies after every epoch: rational functions of the configuration, so that no library rounds them."""
    rate, eps = config["train"]["optimizer"]["lr"] / 1e-3, config["attack"]["eps"] * 255
    ratio, scale = config["method"]["scale_ratio"], config["method"]["logit_scale"]["of_model"]
    peak = 2 * rate / (1 + rate * rate)  # 1 at the best rate, 0 far from it
    robust_end = 0.15 + 0.25 * peak + 0.02 * eps / (1 + eps / 8) - 0.1 * (ratio - 0.8) ** 2 - 0.03 * (scale - 1.2) ** 2
    clean_end = 0.72 - 0.01 * eps - 0.25 * rate / (100 + rate) + 0.002 * config["attack"]["steps"]
    records: list[Record] = []
    for epoch in range(1, config["train"]["epochs"] + 1):
        grown = epoch / (epoch + 1.5)
        own = {"clean_accuracy": 0.70 + (clean_end - 0.70) * grown, "robust_accuracy": max(0.0, robust_end * grown)}
        own["feasible"] = own["clean_accuracy"] >= goal.at_least["clean_accuracy"]
        best = max([*records, {"epoch": epoch, **own}], key=lambda r: (r["feasible"], r["robust_accuracy"]))
        kept = {f"best_{name}": best[name] for name in ("epoch", *own)}
        records.append({"epoch": epoch, **own, **kept})
    idle = {"timestamp_ms": 0, "steps": 0, "train_loss": 0.0, "parts": {}, "lr": 0.0, "grad_norm": 0.0, "datasets": {},
            "train_seconds": 0.0, "eval_seconds": 0.0, "images_per_second": 0.0}  # fmt: skip
    return [EpochRecord.model_validate({**idle, **record}) for record in records]


# --- the file --------------------------------------------------------------------------------------------------------

SAME_KIND = ("torch", "capability", "cpu")


def machine() -> Record:
    """What the last bits depend on, and what else one asks when they differ."""
    return {
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cpu": processor(),
        "threads": THREADS,
        "optuna": optuna.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """Model name, family, model and stepping where Linux says so."""
    path, wanted = Path("/proc/cpuinfo"), ("model name", "cpu family", "model", "stepping")
    if not path.exists():
        return platform.processor() or platform.machine()
    first = path.read_text().partition("\n\n")[0]
    facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
    return ", ".join(facts[key] if key == "model name" else f"{key} {facts[key]}" for key in wanted if key in facts)


def same_kind(made: Mapping[str, Any]) -> bool:
    """Whether this machine must find the file's numbers to the last bit."""
    return all(made[key] == value for key, value in machine().items() if key in SAME_KIND)


def differences(stored: Any, found: Any, *, exact: bool, path: str) -> Iterator[str]:
    """Every place in which found numbers are not the stored ones, a line each, with `path` before it."""
    if isinstance(stored, dict) and isinstance(found, dict):
        for key in [*stored, *(key for key in found if key not in stored)]:
            here = f"{path}.{key}"
            if key not in found or key not in stored:
                yield f"{here}: {'is missing now' if key in stored else 'is not in the file'}"
            else:
                yield from differences(stored[key], found[key], exact=exact, path=here)
    elif isinstance(stored, list) and isinstance(found, list) and len(stored) == len(found):
        for place, pair in enumerate(zip(stored, found, strict=True)):
            yield from differences(*pair, exact=exact, path=f"{path}[{place}]")
    elif not _agree(stored, found, exact=exact or path.startswith("study"), path=path):
        yield f"{path}: {stored!r} in the file, {found!r} now"


def _agree(stored: Any, found: Any, *, exact: bool, path: str) -> bool:
    """Two leaves: what they may differ by follows from what they are."""
    if exact or type(stored) is not type(found):
        return type(stored) is type(found) and bool(stored == found)
    if path.endswith("_sha256"):
        return True
    if isinstance(stored, float):
        early = int(path.rpartition("[")[2].rstrip("]")) < EARLY
        return abs(stored - found) <= (EARLY_TOLERANCE if early else LATE_TOLERANCE) * max(1.0, abs(stored))
    return abs(stored - found) <= IMAGES_TOLERANCE if isinstance(stored, int) else bool(stored == found)


def computed() -> Record:
    """All numbers of the file, as JSON gives them back: doubles are written so that no bit is lost."""
    numbers = {
        "training": {key: training(key) for key in RUNS},
        "evaluation": {key: evaluation(key) for key in ATTACKS},
        "study": study(),
    }
    found: Record = json.loads(json.dumps(numbers))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="write the file instead of comparing with it")
    parser.add_argument("--study", action="store_true", help="with --write: the study alone; the rest stays as it is")
    parser.add_argument("--file", type=Path, default=FILE, help="what to compare with")
    wanted = parser.parse_args()
    if wanted.write:
        commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                                capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
        if wanted.study:
            written = json.loads(wanted.write.read_text()) | {"study": study()}
            written["made"]["study_commit"] = commit
        else:
            written = {
                "made": {"command": " ".join(["python", *sys.argv]), "commit": commit, **machine()},
                **computed(),
            }
        wanted.write.parent.mkdir(parents=True, exist_ok=True)
        wanted.write.write_text(json.dumps(written, indent=1) + "\n")
        return
    numbers, stored = computed(), json.loads(wanted.file.read_text())
    exact = same_kind(stored["made"])
    found = [line for part in numbers for line in differences(stored[part], numbers[part], exact=exact, path=part)]
    print("\n".join(found) or "no difference", "" if exact else "(another kind of machine: within tolerances)")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
