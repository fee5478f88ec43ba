"""Finished tiny-CLIP studies with real checkpoints, without the minutes of a search.

One short real fine-tuning makes a robust encoder; the others lie between it and the unmodified CLIP. A study's rows are
written as its driver would have. On CONFIRM at RADIUS the unmodified CLIP keeps about half of its images, the robust
one nine in ten. On the final set, whose like the fine-tuning has not seen, it is hardly better: the studies give up the
veto of the final sets.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from study.artifacts.checkpoints import attempt_prefix, keep_file
from study.spec.dimension import apply_params
from study.spec.files import parse_study
from study.store.lease import owner_identity
from study.store.rows import Proposal
from study.store.store import StudyStore
from tests.support.epochs import commit
from trainers.schema.records import At, EpochRecord, Measurement, Score, Weights

Trial = tuple[Path | Weights | None, float, float]
RADIUS, CONFIRM = "6/255", "tiny-colors"
BASELINE = Measurement(clean_accuracy=0.97, robust_accuracy=0.10, datasets={})
STUDY: dict[str, Any] = yaml.safe_load(f"""\
model: {{arch: tiny-clip, pretrained: bundled}}
method: {{name: agft, logit_scale: {{of_model: 1.0}}, scale_ratio: 1.0, feature_weight: 20, attack_on: total}}
attack: {{name: pgd, eps: {RADIUS}, step_size: {{of_eps: 0.75}}, steps: 2}}
data: {{train: tiny-color-shapes, dev: [tiny-shapes], confirm: [{CONFIRM}], final: [tiny-digits]}}
train: {{epochs: 2, batch_size: 64, samples_per_epoch: 64, optimizer: {{name: adamw, lr: 1e-3}}}}
evaluate:
  select: {{attack: {{eps: [{RADIUS}], steps: 3}}, samples: 24}}
  final: {{attack: {{eps: [{RADIUS}], steps: 4}}, samples: 96}}
search: {{train.optimizer.lr: {{low: 1e-5, high: 1e-2, log: true}}}}
goal: {{metric: robust_accuracy, subject_to: {{clean_accuracy: ">= clip * 0.8"}}}}
budget: {{trials: 4}}
promote: {{candidates: 2, gates: {{sanity: null, final: false}}}}
""")
CODE = {"revision": "0" * 40, "dirty": False, "version": "0.1.0"}
PROVENANCE = {
    "code": CODE, "packages": {"torch": "2.14.1"}, "python": "3.11.7", "hostname": "test", "devices": [],
    "inputs": {"weights": "1" * 64, "train": "2" * 64},
}  # fmt: skip


def make_checkpoints(folder: Path) -> dict[float, Path]:
    """Weights files by their distance from the unmodified CLIP: 0.2, 0.6, 1.0. A few seconds."""
    from trainers.model.interpolation import interpolate
    from trainers.model.pretrained import load_clip
    from trainers.model.weights import load_weights, save_weights
    from trainers.schema.records import Decision
    from trainers.schema.training import ModelConfig
    from trainers.training.loop import train
    from trainers.trial_config import TrialConfig

    parts = ("model", "method", "attack")
    config = TrialConfig.model_validate(
        {
            **{part: STUDY[part] for part in parts},
            "data": {"train": "tiny-color-shapes"},
            "train": {"epochs": 1, "batch_size": 64, "samples_per_epoch": 16 * 64, "warmup": 0.1, "threads": 1,
                      "optimizer": {"name": "adamw", "lr": 1e-3}},
            "evaluate": {"name": "dev", "datasets": ["tiny-shapes"],
                         "attacks": [{"attack": {"name": "pgd", "steps": 1}, "eps": [RADIUS], "samples": 16}]},
        }
    )  # fmt: skip
    train(config, report=lambda _: Decision.CONTINUE, workdir=folder / "run", resume_from=None)
    base, far = (
        load_clip(ModelConfig(arch="tiny-clip", pretrained="bundled")),
        load_weights(folder / "run" / "best.safetensors"),
    )
    return {
        alpha: save_weights(folder / f"{alpha}.safetensors", interpolate(base, far, alpha), config=config.model_dump())
        for alpha in (0.2, 0.6, 1.0)
    }


def finished_study(
    url: str,
    name: str,
    bucket: str,
    trials: Mapping[int, tuple[Path | dict[str, Any] | None, float, float]],
    **changed: Any,
) -> StudyStore:
    """A study in the database at `url`; `trials`: number -> weights, clean, robust on dev.

    Weights: a file, which is put into S3; what is there already, `{uri, sha256}`; or None, the trial was stopped early.

    `changed` replaces whole blocks of STUDY.
    """
    spec = parse_study(yaml.safe_dump({**STUDY, "name": name, **changed}), source=name)
    store = StudyStore(url, name)
    store.create(spec)
    token = store.acquire(owner_identity())
    store.set_study(token, baseline=BASELINE, provenance={"code": CODE})
    slug = store.load().slug
    floor = spec.goal.resolve(BASELINE).at_least.get("clean_accuracy", 0.0)
    for number, (path, clean, robust) in trials.items():
        params = {"train.optimizer.lr": 1e-3 * (number + 1)}
        store.start_trial(token, Proposal(number, params), apply_params(spec.base(), params, spec.dimensions()))
        files: dict[str, Weights] = {}
        if isinstance(path, Path):
            files["best"] = keep_file(attempt_prefix(bucket, slug, number, token), 1, path, "best", At(1, 1), 0)
        elif path is not None:
            files["best"] = path
        epochs = spec.train.epochs if path is not None else 1
        history = [_record(spec.data.dev, epoch, clean, robust, clean >= floor) for epoch in range(1, epochs + 1)]
        commit(store, token, number, *history, best=files.get("best"), **PROVENANCE)
        if path is None:
            store.finish_trial(token, number, "pruned", stop_reason="asha at epoch 1")
        else:
            store.finish_trial(token, number, "complete")
    store.release(token, "finished")
    return store


def _record(dev: tuple[str, ...], epoch: int, clean: float, robust: float, feasible: bool) -> EpochRecord:
    score = Score.of(correct=round(100 * clean), robust=round(100 * robust), total=100)
    own = {"clean_accuracy": score.clean_accuracy, "robust_accuracy": score.robust_accuracy, "feasible": feasible}
    return EpochRecord(
        epoch=epoch, timestamp_ms=int(time.time() * 1000), steps=epoch, train_loss=1.0, parts={}, lr=1e-3,
        grad_norm=1.0, datasets={name: {RADIUS: score} for name in dev}, best_epoch=epoch, **own,
        **{f"best_{name}": value for name, value in own.items()}, train_seconds=1.0, eval_seconds=0.1,
        images_per_second=64.0,
    )  # fmt: skip
