"""Where a CLIP comes from: open_clip's tags, a file, an export folder, the hub, storage, or the package itself."""

from __future__ import annotations

import contextlib
import json
import socket
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

import open_clip
from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
from torch import nn

from trainers.errors import MissingWeights, UnknownName, UserError, nearest
from trainers.files import hash_file
from trainers.model import bundled as tiny
from trainers.model.build import create, describe
from trainers.model.definitions import check_same_model, quick_gelu
from trainers.model.fitting import check_whole, whole_clip
from trainers.model.formats import read_checkpoint, what_else
from trainers.model.official import Unpacked, unpack
from trainers.model.weights import is_weights_file, load_weights, read_metadata
from trainers.schema.training import ModelConfig

EXPORTED = ("model.safetensors", "pytorch_model.bin", "model.safetensors.index.json", "pytorch_model.bin.index.json")
FETCHERS: dict[str, Callable[[str], Path]] = {}
"""Scheme of an address -> what brings the file or folder at `scheme://...` to this machine. Empty here, since this
package knows no storage: whoever starts a process fills in what it can reach."""


def load_clip(config: ModelConfig) -> nn.Module:
    """The open_clip model of `config`: fp32, eval, on the CPU, nothing trainable.

    `pretrained` is an open_clip tag, `bundled` (tiny-clip), or a place: an export folder (also `local-dir:FOLDER`), a
    checkpoint file (ours, or a plain state dict as .safetensors or .pt, read with `weights_only`, so that no code in it
    can run), `hf-hub:ORG/NAME`, or an address that `FETCHERS` has a function for (`s3://...`).
    Raises `UnknownName` for an architecture or tag, `MissingWeights`, or `UserError` for a wrong combination.
    """
    tiny.register()
    arch, pretrained = config.arch, config.pretrained
    if pretrained == "bundled":
        if arch != tiny.ARCH:
            raise UserError(f"model.pretrained: 'bundled' exists for {tiny.ARCH} only, not for {arch!r}")
        if not tiny.weights_path().is_file():
            raise MissingWeights(f"model.pretrained: the package's own weights are missing: {tiny.weights_path()}")
        return _load_path(arch, tiny.weights_path())
    if config.names_a_place():
        return _load_place(arch, pretrained)
    check_tag(arch, pretrained)
    page = get_pretrained_cfg(arch, pretrained).get("hf_hub", "").strip("/")
    download = f"the open_clip weights of https://huggingface.co/{page}" if page else "the file"
    with _impatient_hub():
        return _create(
            arch,
            pretrained,
            f"the tag {pretrained!r} of {arch}",
            hint=f"Without access to the hub, download {download} elsewhere and give its path, or try arch: tiny-clip, "
            "pretrained: bundled",
        )


def load_folder(path: Path) -> nn.Module:
    """From an open_clip export, called as its weights say, or else as the folder."""
    header = path / "open_clip_model.safetensors"
    arch = read_metadata(header).get("arch") if header.is_file() else None
    arch = arch or path.resolve().name or "model"  # the root has no name
    return load_clip(ModelConfig(arch=arch, pretrained=f"local-dir:{path}"))


def check_tag(arch: str, tag: str) -> None:
    """Raise `UnknownName` or `UserError` where open_clip lists no such weights of `arch`, or they do not fit it."""
    _check_arch(arch)
    tags = list_pretrained_tags_by_model(arch)
    if tag not in tags:
        raise _unknown("model.pretrained", tag, [*tags, *(["bundled"] if arch == tiny.ARCH else [])])
    _check_activation(arch, tag)


def _load_place(arch: str, place: str) -> nn.Module:
    scheme, colon, rest = place.partition(":")
    if scheme == "hf-hub":
        hint = (
            "Without access to the hub, download the repository elsewhere and give its folder as local-dir:FOLDER; a "
            "private one needs HF_TOKEN in the environment"
        )
        with _impatient_hub():
            clip = _create(place, None, place, arch=arch, hint=hint)
        check_same_model(arch, describe(clip).model_cfg, place)
        return clip
    if scheme == "local-dir":
        folder = Path(rest).expanduser()
        if not folder.is_dir():
            raise MissingWeights(f"model.pretrained: no such folder: {folder}")
        return _load_path(arch, folder)
    if colon and rest.startswith("//"):
        if scheme not in FETCHERS:
            raise UserError(f"model.pretrained: {place}: nothing here fetches {scheme}:// addresses; download the file")
        return _load_path(arch, FETCHERS[scheme](place), named=place)
    return _load_path(arch, Path(place).expanduser())


@contextlib.contextmanager
def _impatient_hub() -> Iterator[None]:
    """Where the hub does not answer at all, use its cache or fail, instead of retrying for most of a minute."""
    from huggingface_hub import constants

    before, endpoint = constants.HF_HUB_OFFLINE, urlsplit(constants.ENDPOINT)
    if not before and not getproxies():
        try:
            socket.create_connection((endpoint.hostname, endpoint.port or 443), timeout=5).close()
        except OSError:
            constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _check_arch(arch: str) -> None:
    if arch not in open_clip.list_models():
        raise _unknown("model.arch", arch, open_clip.list_models())


def _unknown(path: str, name: str, known: list[str]) -> UnknownName:
    close = nearest(name, known)
    listed = ", ".join(close if close else sorted(known)[:20]) or "a checkpoint path"
    return UnknownName(f"{path}: open_clip does not know {name!r}; {'nearest' if close else 'known'}: {listed}")


def _check_activation(arch: str, tag: str) -> None:
    """Weights trained with QuickGELU give wrong numbers in an architecture without it, and open_clip only warns."""
    trained = bool(get_pretrained_cfg(arch, tag).get("quick_gelu", False))
    built = quick_gelu(open_clip.get_model_config(arch) or {})
    if trained != built:
        stem = arch.removesuffix("-quickgelu")
        right = f"{stem}-quickgelu" if trained else stem
        raise UserError(
            f"model.arch: the weights {tag!r} were trained {'with' if trained else 'without'} QuickGELU and "
            f"{arch!r} is built {'with' if built else 'without'} it; use arch: {right}"
        )


def _load_path(arch: str, path: Path, *, named: str | None = None) -> nn.Module:
    """From a folder or file; `named`: what the user calls it."""
    source = named or str(path)
    if not path.exists():
        raise MissingWeights(f"model.pretrained: no such checkpoint: {source}")
    if path.is_dir():
        _check_folder(arch, path, source)
        _check_promised(path, source)
        clip = _create(f"local-dir:{path}", None, source, arch=arch)
        check_same_model(arch, describe(clip).model_cfg, source)
        return clip
    with _in_words_of_the_file():
        if not is_weights_file(path):
            return whole_clip(_unpacked(arch, path, source), arch, source)
    clip = load_weights(path)
    if describe(clip).arch != arch:
        raise UserError(f"model.arch: {source} holds a {describe(clip).arch!r}, not a {arch!r}")
    return clip


def _check_folder(arch: str, folder: Path, source: str) -> None:
    """An export of open_clip's, of this architecture, with weights beside its configuration."""
    try:
        model_cfg = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    except FileNotFoundError:
        files = [each.name for each in sorted(folder.iterdir()) if each.name.endswith((".safetensors", ".bin", ".pt"))]
        hint = f"; name one of its files: {', '.join(files[:3])}" if files else ""
        rule = f"is no open_clip export: open_clip_config.json is missing{hint}"
        raise MissingWeights(f"model.pretrained: {source} {rule}") from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        rule = f"has no readable model_cfg in open_clip_config.json ({type(error).__name__}: {error})"
        raise MissingWeights(f"model.pretrained: {source} {rule}") from None
    if isinstance(model_cfg, dict):
        check_same_model(arch, model_cfg, source)
    if not any((folder / f"open_clip_{name}").is_file() for name in EXPORTED):
        raise MissingWeights(f"model.pretrained: {source}: could not load it: no open_clip_{EXPORTED[0]} in it")


def _check_promised(folder: Path, source: str) -> None:
    """`MissingWeights` if a promoted version that was pulled does not have the weights that its manifest promises."""
    manifest, weights = folder / "manifest.json", folder / "open_clip_model.safetensors"
    if not (manifest.is_file() and weights.is_file()):
        return
    try:
        expected = json.loads(manifest.read_text())["weights"]["sha256"]
    except (ValueError, KeyError, TypeError):
        return  # another program's manifest
    found = hash_file(weights)
    if found != expected:
        raise MissingWeights(f"model.pretrained: {source}: {weights.name} has SHA-256 {found}, expected {expected}")


def _unpacked(arch: str, path: Path, source: str) -> Unpacked:
    """The tensors of a whole CLIP that another program wrote; what has no text side is sent to the import."""
    _check_arch(arch)
    found = unpack(read_checkpoint(path), "auto", source)
    if not found.whole:
        raise UserError(
            f"{source} has the layout {found.layout!r} of another code; make weights of it first: "
            f"agft import {source} --arch {arch} --out weights.safetensors"
        )
    return found


@contextlib.contextmanager
def _in_words_of_the_file() -> Iterator[None]:
    """Errors about a checkpoint, as a study file's `model` says it."""
    try:
        yield
    except UnknownName:
        raise
    except UserError as error:
        text = str(error).replace("--arch:", "model.arch:").replace("use --arch ", "use arch: ")
        text = text.replace("sizes of --arch ", "sizes of arch: ")
        raise MissingWeights(text if text.startswith("model.arch:") else f"model.pretrained: {text}") from None


def check_file(config: ModelConfig) -> str:
    """Whether the file at `pretrained` can be the weights of `arch`, told from its tensors, without making the model.

    What is left over in it, or ''. Raises `UserError` as `load_clip` would. Places that are no files pass.
    """
    tiny.register()
    arch, path = config.arch, Path(config.pretrained.removeprefix("local-dir:")).expanduser()
    if not config.names_a_place() or "://" in config.pretrained:
        return ""
    if path.is_dir():
        _check_folder(arch, path, config.pretrained)
        return ""
    with _in_words_of_the_file():
        if reason := what_else(path):
            raise UserError(f"{path}: {reason}")
        if is_weights_file(path):
            held = read_metadata(path).get("arch")
            if held != arch:
                raise UserError(f"--arch: {path} holds a {held!r}, not a {arch!r}")
            return ""
        found = _unpacked(arch, path, str(path))
        check_whole(found, arch, str(path))
        return found.note


def _create(name: str, pretrained: str | None, source: str, *, arch: str | None = None, hint: str = "") -> nn.Module:
    """open_clip.create_model, its many exceptions turned into one that says what could not be had from where."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return create(name, arch or name, pretrained=pretrained, require_pretrained=True)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        raise MissingWeights(f"model.pretrained: could not load {source} ({reason}). {hint}".rstrip()) from error
