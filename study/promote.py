"""Promotion: prove the best checkpoint on data that the search did not use, ship it, and only then move the champion.

1. The top trials (full length, feasible) are measured on the confirm sets, beside the unmodified CLIP and the reigning
   champion; the best of them must reach the floors there and beat the unmodified CLIP.
2. A candidate that does not beat the champion ends the promotion: the champion is kept.
3. The winner, alone, is measured on the final sets; the access is counted in the study store.
4. Weights go to an immutable prefix, HEAD.json is swapped if nobody else swapped it meanwhile, MLflow follows.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from infra import storage
from infra.errors import Conflict
from infra.provenance import provenance
from infra.registry import register_version, set_alias, version_by_key
from study.champion import Head, model_prefix, read_head, read_manifest, reserve_version, swap_head
from study.config import StudyConfig
from study.errors import StudyFailed
from study.measure import measure
from study.projection import flat
from study.results import Measurement, ranked
from study.store import StudyStore, TrialRow
from trainers.config import Goal

__all__ = ["Promotion", "promote"]

UNMODIFIED = "unmodified CLIP"


@dataclass
class Promotion:
    """What a promotion saw and did. `state`: promoted, kept (the champion was as good) or refused (a gate failed)."""

    model: str
    study: str
    state: str = "started"
    trial: int | None = None
    reason: str = ""
    confirm: dict[str, Measurement] = field(default_factory=dict)
    final: dict[str, Measurement] = field(default_factory=dict)
    version: int | None = None
    champion: int | None = None
    uri: str = ""
    sha256: str = ""
    final_accesses: int = 0

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return dict(self.__dict__)


def promote(store: StudyStore, *, bucket: str, tracking_uri: str, run_id: str, say: Callable[[str], None]) -> Promotion:
    """Decide and, if the candidate wins, ship it. Needs a Ray cluster to measure on.

    Raises `StudyFailed` when the study has no full-length feasible trial.
    """
    study = store.load()
    spec = study.spec
    assert study.baseline is not None or not store.trials(), "a study with trials has its baseline"
    goal = spec.goal.resolve(study.baseline or {})
    candidates = [t for t in ranked(store.trials(), goal) if t.last and t.last["best_feasible"] and t.best]
    if not candidates:
        raise StudyFailed(f"study {spec.name!r} has no finished trial that reaches every floor; nothing to promote")
    candidates = candidates[: spec.promote.candidates]
    promotion = Promotion(model=spec.promote.model_name, study=spec.name)
    identity = store.start_promotion()
    try:
        manifest: dict[str, Any] | None = None
        while True:
            head, etag = _decide(promotion, spec, candidates, bucket=bucket, say=say)
            if promotion.state != "won":
                break
            winner = next(t for t in candidates if t.number == promotion.trial)
            if manifest is None or manifest["trial"] != winner.number:
                _prove(promotion, spec, winner, say=say)
                promotion.final_accesses = 1 + sum(bool((p["record"] or {}).get("final")) for p in store.promotions())
                manifest = _ship(promotion, spec, winner, bucket=bucket)
            try:
                assert promotion.version is not None
                head = swap_head(bucket, promotion.model, promotion.version, head, etag)
            except Conflict:
                say("another promotion was faster; deciding again, against the new champion")
                continue
            promotion.state, promotion.reason = "promoted", "the best on the confirm sets"
            say(f"promoted: {promotion.model} version {promotion.version} is the champion")
            _register(promotion, manifest, head, bucket=bucket, tracking_uri=tracking_uri, run_id=run_id)
            break
    finally:
        state = promotion.state if promotion.state in ("promoted", "kept", "refused") else "broken"
        store.end_promotion(identity, state, promotion.record())
    return promotion


def _label(trial: TrialRow) -> str:
    return f"trial {trial.number}"


def _decide(
    promotion: Promotion, spec: StudyConfig, candidates: list[TrialRow], *, bucket: str, say: Callable[[str], None]
) -> tuple[Head, str | None]:
    """Choose among the candidates on the confirm sets, and set the winner against floors, CLIP and champion."""
    head, etag = read_head(bucket, promotion.model)
    promotion.champion = head.champion
    models: dict[str, Any] = {UNMODIFIED: None, **{_label(trial): trial.best for trial in candidates}}
    if head.champion is not None:
        models["champion"] = read_manifest(bucket, promotion.model, head.champion)["weights"]
    say(f"confirm sets {', '.join(spec.data.confirm)}: measuring {', '.join(models)} ...")
    found = measure(models, spec.model, spec.data.confirm, spec.evaluate.final, spec.resources)
    promotion.confirm = found
    for label, result in found.items():
        say(f"  {label:<16} clean {result['clean_accuracy']:6.1%}  robust {result['robust_accuracy']:6.1%}")
    goal = spec.goal.resolve(found[UNMODIFIED])
    best = max(candidates, key=lambda trial: (*_rank(found[_label(trial)], goal), -trial.number))
    own = found[_label(best)]
    promotion.trial = best.number
    missed = [f"{name} {own[name]:.1%} < {floor:.1%}" for name, floor in goal.at_least.items() if own[name] < floor]
    if missed:
        promotion.state, promotion.reason = "refused", f"below a floor on the confirm sets: {'; '.join(missed)}"
    elif goal.value(own.__getitem__) <= goal.value(found[UNMODIFIED].__getitem__):
        promotion.state, promotion.reason = "refused", f"no better than the unmodified CLIP in {goal.metric}"
    elif head.champion is not None and _rank(found["champion"], goal) >= _rank(own, goal):
        promotion.state = "kept"
        promotion.reason = (
            f"champion version {head.champion} has {goal.metric} {found['champion'][goal.metric]:.1%} on the confirm "
            f"sets, trial {best.number} has {own[goal.metric]:.1%}"
        )
    else:
        promotion.state = "won"
    return head, etag


def _rank(result: Measurement, goal: Goal) -> tuple[float, float]:
    missing = sum(max(0.0, floor - result[name]) for name, floor in goal.at_least.items())
    return -missing, goal.value(result.__getitem__)


def _prove(promotion: Promotion, spec: StudyConfig, winner: TrialRow, *, say: Callable[[str], None]) -> None:
    """The final sets, once, for the winner."""
    say(f"trial {winner.number} wins; final sets {', '.join(spec.data.final)}: measuring it beside the unmodified CLIP")
    models = {UNMODIFIED: None, _label(winner): winner.best}
    promotion.final = measure(models, spec.model, spec.data.final, spec.evaluate.final, spec.resources)
    for label, result in promotion.final.items():
        say(f"  {label:<16} clean {result['clean_accuracy']:6.1%}  robust {result['robust_accuracy']:6.1%}")


def _ship(promotion: Promotion, spec: StudyConfig, winner: TrialRow, *, bucket: str) -> dict[str, Any]:
    """Copy the weights to an immutable prefix; returns the manifest, which is written last.

    The weights are the trial's best file, byte for byte; with open_clip_config.json beside them the prefix is what
    open_clip calls a local directory.
    """
    assert winner.best is not None
    version = reserve_version(bucket, promotion.model, spec.name)
    prefix = model_prefix(bucket, promotion.model, version)
    config = ray.get(ray.remote(num_cpus=spec.resources.cpus_per_worker)(_open_clip_config).remote(winner.best))
    storage.put_json(f"{prefix}/open_clip_config.json", config, if_absent=True)
    weights = storage.copy(winner.best["uri"], f"{prefix}/open_clip_model.safetensors")
    promotion.version, promotion.uri, promotion.sha256 = version, prefix, winner.best["sha256"]
    manifest = {
        "model": promotion.model,
        "version": version,
        "study": spec.name,
        "trial": winner.number,
        "config": winner.config,
        "weights": {"uri": weights.uri, "sha256": winner.best["sha256"], "bytes": weights.size},
        "source": winner.best,
        "confirm": promotion.confirm,
        "final": promotion.final,
        "final_accesses": promotion.final_accesses,
        "provenance": provenance(),
    }
    storage.put_json(f"{prefix}/manifest.json", manifest, if_absent=True)
    return manifest


def _open_clip_config(weights: dict[str, Any]) -> dict[str, Any]:
    """In a Ray worker: the weights load, reproduce their fingerprint, and export; the configuration that says how."""
    from trainers.checkpoint import export_open_clip

    with tempfile.TemporaryDirectory(prefix="agft-export-") as folder:
        path = Path(folder) / "best.safetensors"
        storage.get_file(weights["uri"], path, sha256=weights["sha256"])
        return dict(json.loads((export_open_clip(path, Path(folder) / "out") / "open_clip_config.json").read_text()))


def _register(
    promotion: Promotion, manifest: dict[str, Any], head: Head, *, bucket: str, tracking_uri: str, run_id: str
) -> None:
    """Bring MLflow's registry in line with HEAD: the version with its numbers, aliases champion and previous."""
    key = f"{promotion.uri}#{promotion.sha256}"
    metrics = {
        f"{role}_{owner}{name}": float(result[name])
        for role, found in (("confirm", promotion.confirm), ("final", promotion.final))
        for label, owner in ((f"trial {promotion.trial}", ""), (UNMODIFIED, "clip_"))
        for name in ("clean_accuracy", "robust_accuracy")
        for result in (found[label],)
    }
    tags = {
        "agft.study": promotion.study,
        "agft.trial": str(promotion.trial),
        "agft.weights.uri": manifest["weights"]["uri"],
        "agft.weights.sha256": promotion.sha256,
        "agft.version": str(promotion.version),
    }
    with tempfile.TemporaryDirectory(prefix="agft-register-") as folder:
        path = Path(folder) / "manifest.json"
        path.write_text(json.dumps(manifest, indent=2))
        number = register_version(
            tracking_uri, name=promotion.model, key=key, source_uri=promotion.uri, run_id=run_id, metrics=metrics,
            params=flat(manifest["config"]), tags=tags, description=_description(promotion),
            artifacts={"manifest.json": path},
        )  # fmt: skip
    set_alias(tracking_uri, promotion.model, "champion", number)
    if head.previous is not None:
        before = read_manifest(bucket, promotion.model, head.previous)
        old_key = f"{model_prefix(bucket, promotion.model, head.previous)}#{before['weights']['sha256']}"
        old = version_by_key(tracking_uri, promotion.model, old_key)
        if old is not None:
            set_alias(tracking_uri, promotion.model, "previous", old)


def _description(promotion: Promotion) -> str:
    own, clip = promotion.final[f"trial {promotion.trial}"], promotion.final[UNMODIFIED]
    return (
        f"Trial {promotion.trial} of study {promotion.study}. On the final sets: "
        f"robust accuracy {own['robust_accuracy']:.1%} (unmodified CLIP {clip['robust_accuracy']:.1%}), "
        f"clean accuracy {own['clean_accuracy']:.1%} (unmodified CLIP {clip['clean_accuracy']:.1%})."
    )
