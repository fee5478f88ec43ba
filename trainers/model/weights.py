"""Weights between a CLIP and its robust fine-tuning: clean accuracy against robustness, without training.

W(a) = (1 - a) W_CLIP + a W_robust, the image encoder only (the `mix_alpha` of TeCoA's code, Mao et al. 2023).
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from trainers.errors import UserError
from trainers.model.build import Description, build_clip, describe
from trainers.model.definitions import differences
from trainers.model.robust import fingerprint
from trainers.schema.records import EpochRecord

FORMATS = {"weights": 1, "state": 1}  # of what this version writes and reads
KEY = "agft"  # our entry in the safetensors header
TOLERANCE = 1e-4  # of a fingerprint's logits, relative to the logit scale: kernels differ between machines


class CheckpointError(UserError):
    """A checkpoint file that cannot be used: missing, truncated, of another kind, or not what it says it is."""


def _write_atomically(path: Path, content: bytes) -> Path:
    """Whoever reads `path` sees the old file or the whole new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def copy_file(source: Path, target: Path) -> Path:
    """An atomic copy."""
    return _write_atomically(target, source.read_bytes())


def _save(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    header = {KEY: json.dumps(metadata, sort_keys=True), "format": "pt"}
    return _write_atomically(path, to_bytes(plain, metadata=header))


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes: of the weights, whatever file they are in."""
    digest = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON in the header of one of our files, `{}` for another safetensors file; reads no tensor."""
    try:
        with safe_open(path, framework="pt") as file:
            loaded: dict[str, Any] = json.loads((file.metadata() or {}).get(KEY, "{}"))
            return loaded
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file, perhaps truncated ({error})") from error


def _load(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    metadata = read_metadata(path)
    if metadata.get("kind") != kind:
        found = metadata.get("kind", "another")
        raise CheckpointError(f"{path}: expected a {kind} file of agft-study, found {found!r}")
    if metadata.get("format") != FORMATS[kind]:
        raise CheckpointError(f"{path}: format {metadata.get('format')!r}; this version reads {FORMATS[kind]}")
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error


def save_weights(
    path: Path,
    clip: nn.Module,
    *,
    config: Mapping[str, Any] | None = None,
    record: EpochRecord | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """Write the whole open_clip model (text encoder and logit scale unchanged) with all that rebuilding it needs."""
    description = describe(clip)
    metadata = {
        "kind": "weights",
        "format": FORMATS["weights"],
        "arch": description.arch,
        "model_cfg": description.model_cfg,
        "preprocess": description.preprocess,
        "fingerprint": fingerprint(clip),
        "tensors_sha256": tensors_hash(clip.state_dict()),
        "config": dict(config or {}),
        "epoch": record.epoch if record else None,
        "record": record.model_dump(mode="json") if record else None,
        "extra": dict(extra or {}),
    }
    return _save(path, clip.state_dict(), metadata)


def is_weights_file(path: Path) -> bool:
    """Was `path` written by `save_weights`? Raises `CheckpointError` for a damaged safetensors file."""
    return path.suffix == ".safetensors" and read_metadata(path).get("kind") == "weights"


def load_weights(path: Path) -> nn.Module:
    """The model in `path`: fp32, eval, CPU. Bytes and fingerprint must be what they were when it was saved."""
    tensors, metadata = _load(path, "weights")
    expected_sha256 = metadata.get("tensors_sha256")  # files of earlier versions have none
    if expected_sha256 and (found_sha256 := tensors_hash(tensors)) != expected_sha256:
        raise CheckpointError(f"{path}: damaged: its tensors have SHA-256 {found_sha256}, expected {expected_sha256}")
    try:
        clip = build_clip(Description(metadata["arch"], metadata["model_cfg"], metadata["preprocess"]))
        clip.load_state_dict(tensors)
    except Exception as error:
        raise CheckpointError(f"{path}: its tensors do not fit its own description ({error})") from error
    expected, found = torch.tensor(metadata["fingerprint"]), torch.tensor(fingerprint(clip))
    limit = TOLERANCE * float(clip.logit_scale.exp())  # type: ignore[operator]
    if expected.shape != found.shape or not bool(((expected - found).abs() <= limit).all()):
        raise CheckpointError(
            f"{path}: the model does not reproduce its fingerprint (logits {found.tolist()}, saved as "
            f"{expected.tolist()}): the weights or the architecture's definition have changed"
        )
    return clip


def export_open_clip(weights_path: Path, directory: Path) -> Path:
    """Write a folder that plain open_clip loads as `local-dir:DIRECTORY` (model and tokenizer), with equal logits."""
    clip = load_weights(weights_path)
    description, metadata = describe(clip), read_metadata(weights_path)
    config = {"model_cfg": description.model_cfg, "preprocess_cfg": _open_clip_preprocess(description)}
    tensors = {name: value.detach().contiguous().clone() for name, value in clip.state_dict().items()}
    header = {KEY: json.dumps({**metadata, "kind": "export"}, sort_keys=True), "format": "pt"}
    _write_atomically(directory / "open_clip_model.safetensors", to_bytes(tensors, metadata=header))
    _write_atomically(directory / "open_clip_config.json", json.dumps(config, indent=2).encode())
    return directory


def _open_clip_preprocess(description: Description) -> dict[str, Any]:
    """The preprocessing keys that open_clip's own exports carry."""
    keys = ("mean", "std", "interpolation", "resize_mode")
    return {key: description.preprocess[key] for key in keys if key in description.preprocess}


SHOWN = 3


def check_pair(base: nn.Module, robust: nn.Module) -> None:
    """The two are one model before and after fine-tuning: same architecture, same pixels, same text side."""
    first, second = describe(base), describe(robust)
    different = differences(second.model_cfg, first.model_cfg)
    if different:
        what = ", ".join(f"{name} {found!r}, not {value!r}" for name, found, value in different[:SHOWN])
        raise UserError(f"the robust weights are of another architecture than the base {first.arch}: {what}")
    for name in ("mean", "std"):
        one, other = list(first.preprocess[name]), list(second.preprocess[name])
        if one != other:
            raise UserError(
                f"the robust weights expect pixels normalised with {name} {other}, the base with {one}: weights "
                "between them would fit neither"
            )
    ours, theirs = base.state_dict(), robust.state_dict()
    text = [name for name in ours if not name.startswith("visual.") and not torch.equal(ours[name], theirs[name])]
    if text:
        more = ", ..." if len(text) > SHOWN else ""
        raise UserError(
            f"the text sides differ in {len(text)} tensors ({', '.join(text[:SHOWN])}{more}): the base is not the CLIP "
            "that these weights were fine-tuned from"
        )


def _between(base: Tensor, robust: Tensor, alpha: float) -> Tensor:
    # Written so, what fine-tuning left alone stays bit for bit the same; counters cannot be mixed.
    return base + alpha * (robust - base) if base.is_floating_point() else robust.clone()


def interpolate(base: nn.Module, robust: nn.Module, alpha: float) -> nn.Module:
    """A new model at `alpha` in [0, 1], in fp32; at 0 and 1 bit for bit the ends. Call `check_pair` once before."""
    if not 0 <= alpha <= 1:
        raise UserError(f"alpha {alpha:g}: must be between 0 (the base) and 1 (the robust weights)")
    mixed = copy.deepcopy(base if alpha == 0 else robust)
    if 0 < alpha < 1:
        ours, theirs = base.visual.state_dict(), robust.visual.state_dict()  # type: ignore[union-attr]
        mixed.visual.load_state_dict({name: _between(ours[name], theirs[name], alpha) for name in ours})  # type: ignore[union-attr]
    return mixed


def model_hash(clip: nn.Module) -> str:
    """SHA-256 over every tensor's name, type, shape and bytes: of the model, whatever file it was in."""
    return tensors_hash(clip.state_dict())


def hash_weights(visual: nn.Module) -> str:
    """SHA-256 over every parameter and buffer."""
    digest = hashlib.sha256()
    for name, tensor in sorted({**dict(visual.named_parameters()), **dict(visual.named_buffers())}.items()):
        plain = tensor.detach().cpu().contiguous()
        digest.update(repr((name, tuple(plain.shape), str(plain.dtype))).encode())
        digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
