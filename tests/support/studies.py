"""A study as it lies in a store after a day on a small cluster, without any training: filled by the store's methods.

The accuracies follow a smooth response of the sampled parameters plus noise, so that figures look as they do in life.
"""

from __future__ import annotations

import math
import random
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from study.search.stopping import rungs
from study.spec.dimension import apply_params
from study.spec.files import parse_study
from study.store import tables as t
from study.store.rows import Proposal
from study.store.store import StudyStore
from tests.support.epochs import commit, weights
from trainers.schema.records import EpochRecord, Measurement

SPEC = """\
name: NAME
model: {arch: tiny-clip, pretrained: bundled}
method: {name: agft, logit_scale: {of_model: 1.8}, scale_ratio: 0.4}
attack: {name: pgd, eps: 1/255, steps: 2}
data:
  train: tiny-color-shapes
  dev: [tiny-shapes, tiny-digits]
  confirm: [tiny-colors]
  final: [tiny-letters]
train: {epochs: 6, batch_size: 64, optimizer: {name: sgd, lr: 4e-4}}
evaluate:
  select: {protocol: strict, attack: {name: pgd, eps: [1/255, 4/255], steps: 10}, samples: 300}
search:
  method.scale_ratio: {low: 0.2, high: 1.2}
  method.logit_scale: {of_model: {low: 0.6, high: 2.6}}
  method.label_weight: {low: 0, high: 1}
  attack.eps: {choices: [1/255, 2/255, 4/255]}
  train.optimizer.name: {choices: [sgd, adamw]}
  train.optimizer.momentum: {low: 0.0, high: 0.95}
  train.optimizer.lr: {low: 3e-5, high: 1e-2, log: true}
warm_starts: [{}, {method.label_weight: 0.5, method.scale_ratio: 0.8}]
goal: {metric: robust_accuracy, mode: max, subject_to: {clean_accuracy: ">= clip * 0.87"}}
scheduler: {name: asha, grace_fraction: 0.25, reduction_factor: 2}
resources: {workers: 1, max_concurrent: 3}
budget: {trials: 24}
"""
BASELINE = Measurement(clean_accuracy=0.73, robust_accuracy=0.22, datasets={})
HOSTS = ("node-a", "node-b")
START_MS = int(time.time() * 1000) - 65 * 60_000  # the last trials of 24 are still running now
EPOCH_MS = 95_000
FAILED = {5: ("non-finite", "loss is nan at step 37"), 14: ("bug", "Traceback <b>not bold</b>\nValueError: |x| > 1")}
RUNNING, TWICE, LOST = (22, 23), 9, 16


def synthetic_study(folder: Path, *, name: str = "synthetic", trials: int = 24, finished: bool = False) -> StudyStore:
    """A store with `trials` trials: complete, stopped early, failed, continued by a second driver, still running."""
    store = StudyStore(f"sqlite:///{folder}/studies.db", name)
    text = SPEC.replace("NAME", name).replace("trials: 24", f"trials: {max(1, trials)}")
    spec = parse_study(text, source="synthetic")
    store.create(spec)
    token = store.acquire("node-a|1|1.00|m.b.1", seconds=3600)
    store.set_study(token, baseline=BASELINE, provenance={"code": {"revision": "0" * 40, "dirty": False}})
    luck = random.Random(7)
    ends = [0, 0, 0]  # ms at which each of three slots is free again
    for number in range(trials):
        slot = ends.index(min(ends))
        params = _params(number, luck)
        length = _length(number, params, finished=finished)
        token = _live(store, token, number, params, length, finished=finished)
        began = ends[slot] + 4_000
        ends[slot] = _place_in_time(store, number, began, HOSTS[slot % 2])
    _set(store, t.studies, None, created_ms=START_MS - 60_000)
    if finished:
        store.release(token, "finished")
    return store


def _params(number: int, luck: random.Random) -> dict[str, Any]:
    if number < 2:  # the file's own values, which are the paper's, and a warm start
        found: dict[str, Any] = {"method.scale_ratio": 0.8 if number else 0.4, "method.logit_scale": 1.8}
        found |= {"method.label_weight": 0.5 if number else 0.0, "attack.eps": 1 / 255, "train.optimizer.name": "sgd"}
        return {**found, "train.optimizer.momentum": 0.9, "train.optimizer.lr": 4e-4}
    found = {
        "method.scale_ratio": luck.uniform(0.2, 1.2),
        "method.logit_scale": luck.uniform(0.6, 2.6),
        "method.label_weight": luck.uniform(0, 1),
        "attack.eps": luck.choice([1, 2, 4]) / 255,
        "train.optimizer.name": luck.choice(["sgd", "adamw"]),
        "train.optimizer.lr": 10 ** luck.uniform(math.log10(3e-5), -2),
    }
    if found["train.optimizer.name"] == "sgd":  # conditional: AdamW has none
        found["train.optimizer.momentum"] = luck.uniform(0, 0.95)
    return found


def _quality(params: dict[str, Any]) -> tuple[float, float]:
    """(clean, robust) that the trial tends to: the rate and the radius matter, momentum does not."""
    rate = math.log10(params["train.optimizer.lr"])
    eps = params["attack.eps"] * 255
    robust = 0.47 - 0.05 * (rate + 3.1) ** 2 - 0.10 * (params["method.scale_ratio"] - 0.8) ** 2 + 0.03 * math.log2(eps)
    clean = 0.70 - 0.035 * (rate + 4) ** 2 - 0.03 * math.log2(eps) + 0.03 * params["method.label_weight"]
    return max(0.2, clean), max(0.05, robust)


def _length(number: int, params: dict[str, Any], *, finished: bool) -> int:
    if number in FAILED:
        return 1
    if number in RUNNING and not finished:
        return number - RUNNING[0] + 1
    robust = _quality(params)[1]
    return 2 if robust < 0.40 else 4 if robust < 0.44 and number % 3 else 6


def _live(store: StudyStore, token: int, number: int, params: dict[str, Any], length: int, *, finished: bool) -> int:
    """One trial's life; returns the token of the driver at its end."""
    spec = store.load().spec
    floor = spec.goal.resolve(BASELINE).at_least["clean_accuracy"]
    config = apply_params(spec.base(), params, spec.dimensions())
    history = _history(number, params, length, floor)
    store.start_trial(token, Proposal(number, params), config)
    if number == TWICE:  # its driver was replaced after two epochs
        _record(store, token, number, history[:2])
        store.end_attempt(token, number, "paused")
        token = _next_driver(store, token)
        store.start_trial(token, Proposal(number, params), config)
    if number == LOST:  # its driver died without a word
        token = _next_driver(store, token)
        store.start_trial(token, Proposal(number, params), config)
    _record(store, token, number, history)
    stops = rungs(spec.scheduler, spec.train.epochs)
    if number in FAILED:
        kind, message = FAILED[number]
        store.finish_trial(token, number, "failed", failure_kind=kind, stop_reason=message)
    elif length == spec.train.epochs:
        store.finish_trial(token, number, "complete")
    elif finished or number not in RUNNING:
        store.decide(token, number, length, "stop", f"epoch {length}: place 4 of 5")
        assert length in stops, (length, stops)
        store.finish_trial(token, number, "pruned", stop_reason=f"asha at epoch {length}")
    return token


def _next_driver(store: StudyStore, token: int) -> int:
    store.release(token, "paused")
    return store.acquire("node-b|1|1.00|m.b.1", seconds=3600)


def _record(store: StudyStore, token: int, number: int, history: list[EpochRecord]) -> None:
    place = f"s3://agft/studies/x/trials/{number}"
    files = {role: weights(f"{place}/{role}", f"{number:064d}") for role in ("latest", "best")}
    commit(store, token, number, *history, **files, device_seconds=len(history) * EPOCH_MS / 1000)


def _history(number: int, params: dict[str, Any], length: int, floor: float) -> list[EpochRecord]:
    noise = random.Random(number)
    clean_end, robust_end = _quality(params)
    found: list[dict[str, Any]] = []
    for epoch in range(1, length + 1):
        grown = 1 - math.exp(-0.6 * epoch)
        clean = 0.73 - (0.73 - clean_end) * grown + noise.gauss(0, 0.006)
        robust = 0.22 + (robust_end - 0.22) * grown + noise.gauss(0, 0.008)
        counts = {
            name: {eps: _score(clean + shift, robust + shift + tilt) for eps, tilt in (("1/255", 0.1), ("4/255", -0.1))}
            for name, shift in (("tiny-shapes", 0.1), ("tiny-digits", -0.1))
        }
        scores = [score for by_eps in counts.values() for score in by_eps.values()]
        clean, robust = (sum(score[f"{m}_accuracy"] for score in scores) / 4 for m in ("clean", "robust"))
        record = {
            "epoch": epoch, "timestamp_ms": START_MS + epoch * EPOCH_MS, "steps": 60 * epoch,
            "train_loss": 2.0 * math.exp(-0.3 * epoch) + 0.4, "parts": {}, "lr": 4e-4, "grad_norm": 1.0,
            "skipped_updates": 0, "notes": [], "clean_accuracy": clean, "robust_accuracy": robust, "datasets": counts,
            "feasible": clean >= floor, "train_seconds": 70.0, "eval_seconds": 20.0, "images_per_second": 60.0,
            "system": {"cpu_percent": 97.0, "memory_gb": 1.2},
        }  # fmt: skip
        best = max(
            [*found, record],
            key=lambda r: (r["feasible"], r["robust_accuracy"] if r["feasible"] else r["clean_accuracy"]),
        )
        record |= {f"best_{name}": best[name] for name in ("epoch", "clean_accuracy", "robust_accuracy", "feasible")}
        found.append(record)
    return [EpochRecord.model_validate(record) for record in found]


def _score(clean: float, robust: float) -> dict[str, Any]:
    total = 300
    correct = round(min(0.98, clean) * total)
    held = min(correct, round(max(0.02, robust) * total))
    return {"clean_accuracy": correct / total, "robust_accuracy": held / total, "correct": correct, "robust": held,
            "total": total}  # fmt: skip


def _place_in_time(store: StudyStore, number: int, began: int, host: str) -> int:
    """Spread a trial, which took milliseconds here, over the hours that it would have taken; returns its end."""
    row = store.trial(number)
    clock, done = START_MS + began, 0
    for place, attempt in enumerate(row.attempts):
        last = place == len(row.attempts) - 1
        length = (len(row.epochs) - done) * EPOCH_MS if last else 2 * EPOCH_MS
        lost = not last and attempt.outcome is None
        _set(
            store, t.attempts, number, token=attempt.token, started_ms=clock,
            ended_ms=None if attempt.ended_ms is None else clock + length,
            provenance={"hostname": host, "devices": [], "cpus": 2, "python": "3.11", "packages": {"torch": "2.14"},
                        "code": {"revision": "0" * 40, "dirty": False},
                        "inputs": {"weights": "a" * 64, "train": "b" * 64, "dev.0": "c" * 64, "dev.1": "d" * 64}},
        )  # fmt: skip
        done += 0 if lost else length // EPOCH_MS
        clock += length + (0 if last else 3 * EPOCH_MS)
    _set(store, t.trials, number, started_ms=START_MS + began, ended_ms=clock if row.finished else None)
    for record in row.epochs:
        when = clock - (len(row.epochs) - record.epoch) * EPOCH_MS
        if number == TWICE and record.epoch <= 2:
            when = START_MS + began + record.epoch * EPOCH_MS
        moved = record.model_copy(update={"timestamp_ms": when}).model_dump(mode="json")
        _set(store, t.epochs, number, epoch=record.epoch, record=moved)
    return clock - START_MS


def _set(store: StudyStore, table: sa.Table, number: int | None, **values: Any) -> None:
    where = table.c.name == store.name if number is None else sa.and_(
        table.c.study == store.name, table.c.number == number,
        *(table.c[key] == values.pop(key) for key in ("token", "epoch") if key in values),
    )  # fmt: skip
    with store.engine.begin() as connection:
        connection.execute(sa.update(table).where(where).values(**values))
