"""What `agft import`, `export` and `interpolate` do: files and addresses in, files and a few lines out."""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
from torch import nn

from infra.storage import hash_file
from study.artifacts.sources import fetch_weights, use_s3_data, use_s3_weights
from study.console import percent
from study.errors import UserError
from study.results.ranking import Measurement, summary
from study.session import storage_here
from study.spec.suite import attack_at
from trainers import data
from trainers.device import task_device
from trainers.errors import UserError as TrainersUserError
from trainers.errors import lookup
from trainers.evaluation.measure import evaluate_sets
from trainers.model.build import describe
from trainers.model.exports.onnx_folder import CARD, IMAGE, OPSET, TEXT, export_onnx
from trainers.model.exports.timm_folder import export_timm
from trainers.model.exports.transformers_folder import VISION, export_transformers
from trainers.model.importing import UNRELATED, default_base, export_agft, import_checkpoint
from trainers.model.interpolation import check_pair, interpolate
from trainers.model.pretrained import load_clip, load_folder
from trainers.model.weights import (
    export_open_clip,
    hash_weights,
    is_weights_file,
    load_weights,
    read_metadata,
    save_weights,
)
from trainers.schema.attacks import PGD
from trainers.schema.suite import Suite
from trainers.schema.training import ModelConfig


def say(text: str) -> None:
    """Progress and remarks; results alone go to standard output."""
    click.echo(text, err=True)


@contextlib.contextmanager
def _as_options(place: str = "--base") -> Iterator[None]:
    """Errors about a study file's `model`, in the words of the command line; `place` stands for `model.pretrained`."""
    try:
        yield
    except TrainersUserError as error:
        text = str(error).removesuffix(", or try arch: tiny-clip, pretrained: bundled")
        for field, option in (("model.pretrained:", f"{place}:"), ("model.arch:", "--arch:")):
            text = text.replace(field, option)
        raise UserError(text) from error


def _check_free(path: Path) -> None:
    if path.exists():
        raise UserError(f"--out: {path} exists already; nothing was written")


def _reach_storage(*places: str | None, home: Path) -> None:
    if any(place and place.startswith("s3:") for place in places):
        storage_here(home, say)
        use_s3_weights()


def import_file(
    file: Path, arch: str, *, layout: str, base: str | None, gelu: bool = False, out: Path, home: Path
) -> None:
    """Write our weights file from an official checkpoint, and say what it was."""
    _check_free(out)
    if out.suffix != ".safetensors":
        raise UserError(f"--out: {out}: a weights file ends in .safetensors")
    _reach_storage(base, home=home)
    with _as_options():
        found = import_checkpoint(file, arch, layout=layout, base=base, gelu=gelu)
    if found.distance is not None and found.distance > UNRELATED:
        say(f"warning: this encoder is as far from {found.base!r} as an unrelated one (relative distance "
            f"{found.distance:.2f}); was the training really started from it?")  # fmt: skip
    save_weights(out, found.clip, extra={"import": found.provenance})
    if found.note:
        say(f"note: {found.note}")
    pixels = describe(found.clip).preprocess["mean"]
    click.echo(f"layout     {found.layout}{' (recognised)' if layout == 'auto' else ''}")
    side = "image and text side" if found.base is None else f"image encoder; text side of {found.base!r}"
    click.echo(f"holds      {found.tensors} tensors, {', '.join(found.dtypes)}; {side}")
    if found.distance is not None:
        click.echo(f"distance   {found.distance:.4f} from {found.base!r} (relative L2 of the encoder's matrices)")
    click.echo(f"pixels     normalised with mean {', '.join(f'{value:.3f}' for value in pixels)}")
    click.echo(f"written    {out}  ({out.stat().st_size / 1e6:.1f} MB, sha256 {hash_file(out)})")
    click.echo(f"in a study model: {{arch: {arch}, pretrained: {out}}}")


def _weights_file(place: str, scratch: Path) -> Path:
    """One of our weights files, for whatever WEIGHTS or ROBUST names."""
    path = fetch_weights(place, say) if place.startswith("s3:") else Path(place).expanduser()
    if path.is_dir():
        return save_weights(scratch / "weights.safetensors", load_folder(path))
    if not path.exists():
        raise UserError(f"{place}: no such file")
    if not is_weights_file(path):
        raise UserError(f"{place}: no weights file of agft; `agft import` makes one of another code's checkpoint")
    return path


def export_file(weights: str, out: Path, *, layout: str, home: Path) -> None:
    """Write weights as another library loads them, and say how it does."""
    _check_free(out)
    _reach_storage(weights, home=home)
    with _as_options("WEIGHTS"), tempfile.TemporaryDirectory(prefix="agft-export-") as scratch:
        for line in EXPORTS[layout](_weights_file(weights, Path(scratch)), out):
            click.echo(line)


def _to_open_clip(path: Path, out: Path) -> list[str]:
    written = export_open_clip(path, out)
    return [
        f"written    {written}/open_clip_config.json, {written}/open_clip_model.safetensors",
        f'use        open_clip.create_model_and_transforms("local-dir:{written}")',
    ]


def _to_agft(path: Path, out: Path) -> list[str]:
    written = export_agft(path, out)
    return [
        f"written    {written}  (sha256 {hash_file(written)})",
        "use        --weight_path of AGFT's validate.py; its text side is always OpenAI's",
    ]


def _to_transformers(path: Path, out: Path) -> list[str]:
    written = export_transformers(path, out)
    return [
        f"written    {written}/ and {written}/{VISION}/: config.json, model.safetensors, preprocessor_config.json",
        f'use        transformers.CLIPModel.from_pretrained("{written}"), CLIPProcessor likewise',
        f'           transformers.CLIPVisionModel.from_pretrained("{written}/{VISION}"), as the tower of a LLaVA',
    ]


def _to_timm(path: Path, out: Path) -> list[str]:
    written = export_timm(path, out)
    return [
        f"written    {written}/config.json, {written}/model.safetensors",
        f'use        timm.create_model("local-dir:{written}", pretrained=True); its output is CLIP\'s image embedding',
    ]


def _to_onnx(path: Path, out: Path) -> list[str]:
    written, worst = export_onnx(path, out)
    found = f"its logits differ from open_clip's by {worst:.1g} at most" if worst is not None else "not installed"
    return [
        f"written    {written}/{IMAGE}, {written}/{TEXT}, {written}/{CARD}  (opset {OPSET})",
        f"compared   with onnxruntime: {found}",
        "use        logits = logit_scale * image embedding @ text embedding, both of unit norm",
    ]


EXPORTS = {
    "open-clip": _to_open_clip, "agft": _to_agft, "transformers": _to_transformers, "timm": _to_timm, "onnx": _to_onnx,
}  # fmt: skip


def _alphas(text: str) -> list[float]:
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--alphas: {text!r} is no list of numbers such as 0.25,0.5,0.75") from None
    for value in values:
        if not 0 <= value <= 1:
            raise UserError(f"--alphas: {value:g} is not between 0 (the base) and 1 (ROBUST)")
    return values


def _measuring(on: str | None, eps: str, samples: int | None) -> Suite | None:
    """What is measured on the datasets, if any are given."""
    names = [name.strip() for name in (on or "").split(",") if name.strip()]
    for name in names:
        if not name.startswith(data.PREFIXES):
            lookup(data.DATASETS, name, path="--on")
    if problems := data.not_ready({f"--on: {name}": name for name in names}):
        raise UserError("\n".join(problems))
    attack = attack_at(PGD(steps=10), eps, samples)
    return Suite(name="interpolation", datasets=tuple(names), attacks=(attack,)) if names else None


def _origin(path: Path, arch: str) -> str:
    """What the weights say they were trained from; OpenAI's when they do not."""
    metadata = read_metadata(path)
    trained = metadata.get("config", {}).get("model", {}).get("pretrained")
    imported = metadata.get("extra", {}).get("import", {}).get("base")
    return str(trained or imported or default_base(arch))


def interpolate_files(
    robust: str, *, base: str | None, alphas: str, out: Path, on: str | None, eps: str, samples: int | None, home: Path
) -> dict[str, Any]:
    """Write a weights file for every alpha and, if datasets are given, measure each; what was done, as JSON values."""
    shares = _alphas(alphas)
    suite = _measuring(on, eps, samples)
    paths = {alpha: out / f"alpha-{alpha:g}.safetensors" for alpha in shares}
    for path in paths.values():
        _check_free(path)
    _reach_storage(robust, base, home=home)
    with _as_options("ROBUST"), tempfile.TemporaryDirectory(prefix="agft-interpolate-") as scratch:
        path = _weights_file(robust, Path(scratch))
        far = load_weights(path)
        sources = {"robust": {"from": robust, "sha256": hash_file(path), "model_sha256": hash_weights(far)}}
        base = base or _origin(path, describe(far).arch)
    _reach_storage(base, home=home)
    with _as_options():
        near = load_clip(ModelConfig(arch=describe(far).arch, pretrained=base))
        check_pair(near, far)
    sources["base"] = {"from": base, "model_sha256": hash_weights(near)}
    rows: list[dict[str, Any]] = []
    for alpha, path in paths.items():
        mixed = interpolate(near, far, alpha)
        save_weights(path, mixed, extra={"interpolation": {"alpha": alpha, **sources}})
        rows.append({"alpha": alpha, "file": str(path), "sha256": hash_file(path)})
        say(f"written    {path}")
    found = {"arch": describe(far).arch, **sources, "files": rows}
    if suite is not None:
        use_s3_data()
        measured = _measure(near, far, sorted({0.0, 1.0, *shares}), suite)
        found["evaluation"] = suite.model_dump(mode="json")
        found["measured"] = [{"alpha": alpha, **result} for alpha, result in measured.items()]
    return found


def _measure(near: nn.Module, far: nn.Module, alphas: Sequence[float], suite: Suite) -> dict[float, Measurement]:
    """Every alpha on every set, with a line of progress for each."""
    device = task_device()
    started = time.monotonic()
    results: dict[float, Measurement] = {}
    for done, alpha in enumerate(alphas, 1):
        sets = evaluate_sets(interpolate(near, far, alpha), suite, device=device)
        scores = {
            name: {eps: score.model_dump(mode="json") for eps, score in each.scores().items()}
            for name, each in sets.items()
        }
        results[alpha] = summary(scores)
        clean, fooled = (percent(results[alpha][key]) for key in ("clean_accuracy", "robust_accuracy"))
        left = (time.monotonic() - started) / done * (len(alphas) - done)
        say(f"alpha {alpha:<5g} clean {clean}, robust {fooled}   ({done} of {len(alphas)}, about {left:.0f} s left)")
    return results
