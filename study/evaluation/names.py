"""What MODEL may be on the command line, told from its name alone: wrong names are answered before torch is imported.

weights.safetensors    a weights file of agft, here or at s3://
exported/              a folder that open_clip exports, here or at s3://.../
ARCH:PRETRAINED        as a study file's `model`: ViT-B-32-quickgelu:openai, ViT-B-32-quickgelu:official.pth
tiny-clip              the bundled one
models:/NAME           the champion of a model name; models:/NAME/2 a version, models:/NAME@previous the one before
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from study.errors import UserError
from trainers.errors import nearest
from trainers.model import bundled as tiny
from trainers.model.architectures import known_architectures

REGISTERED = "models:/"
REFERENCE = re.compile(r"^models:/(?P<name>[^/@]+)(?:/(?P<version>\d+)|@(?P<alias>champion|previous))?$")
S3 = "s3://"
ENDINGS = re.compile(r"\.(safetensors|pth|pt|bin|tar)$")
SILENT = re.compile(r"^(\d+|best|latest|weights|open_clip_model)$")  # parts of a path that say nothing on their own


def check_names(models: Sequence[str], *, original: str | None = None, surrogate: str | None = None) -> None:
    """Raise a `UserError` with everything that none of these can mean."""
    named = [("MODEL", model) for model in models]
    named += [("--original", original)] * (original not in (None, "none"))  # type: ignore[list-item]
    named += [("--surrogate", surrogate)] * (surrogate is not None)  # type: ignore[list-item]
    if found := [f"{path}: {name}: {rule}" for path, name in named if (rule := _wrong(name))]:
        raise UserError("\n".join(found))


def of_architecture(named: str) -> tuple[str, str] | None:
    """(ARCH, PRETRAINED) of what is written so; None for a place."""
    if named == tiny.ARCH:
        return tiny.ARCH, "bundled"
    arch, colon, pretrained = named.partition(":")
    if not colon or named.startswith((S3, REGISTERED)) or Path(named).expanduser().exists():
        return None
    return arch, pretrained


def _wrong(named: str) -> str | None:
    if named.startswith(REGISTERED):
        return None if REFERENCE.match(named) else "expected models:/NAME, models:/NAME/VERSION or @previous"
    if named.startswith(S3):
        return None
    known = known_architectures()
    if found := of_architecture(named):
        if found[0] in known:
            return None
        close = nearest(found[0], known)
        return "no such architecture" + (f"; nearest: {', '.join(close)}" if close else "")
    if Path(named).expanduser().exists():
        return None
    if named in known:
        return f"which of its weights? Such as {named}:TAG (an open_clip tag) or {named}:FILE"
    close = nearest(named, known)
    return "no such file, folder or architecture" + (f"; nearest: {close[0]}:TAG" if close else "")


def default_label(named: str) -> str:
    """What a model is called if nobody says: of a path the last part that says something."""
    if named.startswith(REGISTERED):
        return _plain(named.removeprefix(REGISTERED))
    parts = [part for part in named.removeprefix(S3).rstrip("/").split("/") if part]
    words = [ENDINGS.sub("", parts[-1] if parts else "")]
    while SILENT.match(words[0]) and len(words) < min(len(parts), 4):
        words.insert(0, parts[-1 - len(words)])
    return _plain("-".join(words).removesuffix(":bundled"))


def _plain(text: str) -> str:
    """Letters, digits and . _ - only: a label is part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._]+", "-", text).strip("-.")[:60] or "model"
