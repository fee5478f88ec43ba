"""Weights files: a whole open_clip model and all that rebuilding it needs, in safetensors with a JSON header.

A file says what it is (`kind`, `format`), what its tensors hash to, and a fingerprint that whoever loads it computes
again. `trainers.training.state` keeps a run's state in the same form.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from trainers.errors import UserError
from trainers.files import write_whole
from trainers.model.build import Description, build_clip, describe
from trainers.model.formats import is_safetensors, what_else
from trainers.model.robust import fingerprint
from trainers.schema.records import EpochRecord

if TYPE_CHECKING:
    from typing_extensions import Buffer

FORMATS = {"weights": 1, "state": 1}  # of what this version writes and reads
KEY = "agft"  # our entry in the safetensors header
TOLERANCE = 1e-4  # of a fingerprint's logits, relative to the logit scale: kernels differ between machines
# safetensors' names of types, in the order in which its files have them, the last one first.
DTYPES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.int16: "I16", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.int32: "I32", torch.float32: "F32", torch.float64: "F64", torch.int64: "I64",
}  # fmt: skip
ORDER = list(DTYPES)


class CheckpointError(UserError):
    """A checkpoint file that cannot be used: missing, truncated, of another kind, or not what it says it is."""


def write(path: Path, *content: Buffer) -> Path:
    """Whoever reads `path` sees the old file or the whole new one, also after a crash."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, *content)
    return path


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> Path:
    """Write one of our files; `metadata` has its `kind` and `format`."""
    return _write(path, tensors, {KEY: json.dumps(metadata, sort_keys=True), "format": "pt"})


def save_plain(path: Path, tensors: Mapping[str, Tensor]) -> Path:
    """Write a safetensors file for other libraries, which ask for the format of the tensors and for nothing else."""
    return _write(path, tensors, {"format": "pt"})


def _write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Path:
    """A safetensors file, laid out as the library does it, which writes its metadata in another order every time, and
    whose way through memory would take four times that of the tensors.

    The format is the length of the header (8 bytes, little endian), the header as JSON, padded, and the tensors.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    names, start = sorted(tensors, key=lambda name: (-ORDER.index(tensors[name].dtype), name)), 0
    for name in names:
        tensor, kind = tensors[name], DTYPES[tensors[name].dtype]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, start + tensor.nbytes]}
        start += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return write(path, len(text).to_bytes(8, "little"), text, *(_bytes(tensors[name]) for name in names))


def _bytes(tensor: Tensor) -> memoryview:
    """Of a tensor, on a CPU without a copy."""
    data: memoryview = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
    return data


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over every tensor's name, shape, type and bytes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(repr((name, tuple(tensor.shape), str(tensor.dtype))).encode())
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def hash_weights(module: nn.Module) -> str:
    """SHA-256 over every parameter and buffer: of the weights, whatever file they were in."""
    return hash_tensors({**dict(module.named_parameters()), **dict(module.named_buffers())})


def read_metadata(path: Path) -> dict[str, Any]:
    """The JSON in the header of one of our files, `{}` for another safetensors file; reads no tensor."""
    if what := what_else(path):
        raise CheckpointError(f"{path}: {'no such checkpoint' if what == 'no such file' else what}")
    try:
        with safe_open(path, framework="pt") as file:
            loaded = json.loads((file.metadata() or {}).get(KEY, "{}"))
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        reason = str(error) if is_safetensors(path) else "it does not begin with the length of a header and the header"
        raise CheckpointError(f"{path}: not a readable safetensors file, perhaps truncated ({reason})") from error
    if not isinstance(loaded, dict):
        raise CheckpointError(f"{path}: its header's {KEY!r} is no mapping, so this program did not write it")
    return loaded


def load_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of one of our files; `CheckpointError` if it is of another kind or format, or damaged."""
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
    """Write the whole open_clip model (text encoder and logit scale unchanged) with all that rebuilding it needs.

    Two equal runs write equal bytes: the record is there without its times.
    """
    description = describe(clip)
    metadata = {
        "kind": "weights",
        "format": FORMATS["weights"],
        "arch": description.arch,
        "model_cfg": description.model_cfg,
        "preprocess": description.preprocess,
        "fingerprint": fingerprint(clip),
        "tensors_sha256": hash_tensors(clip.state_dict()),
        "config": dict(config or {}),
        "epoch": record.epoch if record else None,
        "record": record.repeatable() if record else None,
        "extra": dict(extra or {}),
    }
    return save_tensors(path, clip.state_dict(), metadata)


def is_weights_file(path: Path) -> bool:
    """Was `path` written by `save_weights`, whatever its name? Raises `CheckpointError` for a damaged file."""
    if what := what_else(path):
        raise CheckpointError(f"{path}: {what}")
    named_so = path.suffix == ".safetensors" and not zipfile.is_zipfile(path)
    return (named_so or is_safetensors(path)) and read_metadata(path).get("kind") == "weights"


def load_weights(path: Path) -> nn.Module:
    """The model in `path`: fp32, eval, CPU. Bytes and fingerprint must be what they were when it was saved."""
    tensors, metadata = load_tensors(path, "weights")
    promised, there = metadata.get("tensors_sha256"), hash_tensors(tensors)
    if there != promised:
        raise CheckpointError(f"{path}: damaged: its tensors have SHA-256 {there}, expected {promised}")
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
    save_tensors(directory / "open_clip_model.safetensors", clip.state_dict(), {**metadata, "kind": "export"})
    write(directory / "open_clip_config.json", json.dumps(config, indent=2).encode())
    return directory


def _open_clip_preprocess(description: Description) -> dict[str, Any]:
    """The preprocessing keys that open_clip's own exports carry."""
    keys = ("mean", "std", "interpolation", "resize_mode")
    return {key: description.preprocess[key] for key in keys if key in description.preprocess}
