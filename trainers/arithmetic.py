"""How products are rounded and in which order sums are made; whatever the caller had set comes back."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch


@contextlib.contextmanager
def exact_math(*, tf32: bool = False) -> Iterator[None]:
    """IEEE fp32 products (or TF32) and one attention kernel with and without gradients; restored on leaving.

    torch has two sets of flags for one thing, and raises when it reads them apart: both are set, the old one first, so
    that either can be read inside. Where the caller's own are apart, the old one is "highest" afterwards.
    """
    before = _read()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    kind = "tf32" if tf32 else "ieee"
    try:
        _write("high" if tf32 else "highest", tf32, [kind] * len(before[2]))
        torch.backends.mha.set_fastpath_enabled(False)
        yield
    finally:
        _write(*before)
        torch.backends.mha.set_fastpath_enabled(fastpath)


def resolved_precision(wanted: str, device: torch.device) -> str:
    """`auto` is bf16 on a GPU with the hardware for it, else fp32; all else is itself."""
    if wanted != "auto":
        return wanted
    has_it = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if has_it else "fp32"


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Only kernels that add in one order; an operation without one raises. A CPU's are such anyway.

    Attention then has another kernel than cuDNN's, and cuBLAS a workspace of its own, which an environment variable
    says; it stays set.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        if on:
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
            torch.use_deterministic_algorithms(True)
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _places() -> list[Any]:
    """What has an `fp32_precision` of its own."""
    each: Any = torch.backends
    return [each.cuda.matmul, each.cudnn.conv, each.cudnn.rnn, each.mkldnn.matmul, each.mkldnn.conv, each.mkldnn.rnn]


def _read() -> tuple[str, bool, list[str]]:
    try:
        matmul = torch.get_float32_matmul_precision()
    except RuntimeError:
        matmul = "highest"
    try:
        cudnn = torch.backends.cudnn.allow_tf32
    except RuntimeError:
        cudnn = False
    return matmul, cudnn, [place.fp32_precision for place in _places()]


def _write(matmul: str, cudnn: bool, kinds: list[str]) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = cudnn
    for place, kind in zip(_places(), kinds, strict=True):
        place.fp32_precision = kind
