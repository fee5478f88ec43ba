"""Products of fp32 matrices are rounded as the step says, whatever the caller had set, and the caller's comes back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from trainers.arithmetic import exact_math

BACKENDS: Any = torch.backends


def flags() -> dict[str, object]:
    """Every flag that says how products are rounded, old ones and new ones; what cannot be read is an error's name."""
    found: dict[str, object] = {}
    readers: dict[str, Callable[[], object]] = {
        "matmul": torch.get_float32_matmul_precision,
        "cuda.allow_tf32": lambda: BACKENDS.cuda.matmul.allow_tf32,
        "cudnn.allow_tf32": lambda: BACKENDS.cudnn.allow_tf32,
    }
    for name in ("cuda.matmul", "cudnn", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn"):
        first, *rest = name.split(".")
        place = getattr(getattr(BACKENDS, first), rest[0]) if rest else getattr(BACKENDS, first)
        readers[name] = lambda place=place: place.fp32_precision  # type: ignore[misc]
    for name, read in readers.items():
        try:
            found[name] = read()
        except RuntimeError as error:
            found[name] = type(error).__name__
    return found


def plain() -> None:
    """As torch starts."""
    for place in (BACKENDS, BACKENDS.cudnn, BACKENDS.mkldnn):
        place.fp32_precision = "none"
    torch.set_float32_matmul_precision("highest")
    BACKENDS.cudnn.allow_tf32 = True
    for place in (BACKENDS.cuda.matmul, BACKENDS.mkldnn.matmul, BACKENDS.mkldnn.conv, BACKENDS.mkldnn.rnn):
        place.fp32_precision = "none"


def old_flags() -> None:
    BACKENDS.cuda.matmul.allow_tf32 = BACKENDS.cudnn.allow_tf32 = True


def apart() -> None:
    torch.set_float32_matmul_precision("high")
    BACKENDS.cuda.matmul.fp32_precision = "ieee"


CALLERS: dict[str, Callable[[], None]] = {
    "nothing": lambda: None,
    "high": lambda: torch.set_float32_matmul_precision("high"),
    "medium": lambda: torch.set_float32_matmul_precision("medium"),
    "the old flags": old_flags,
    "no TF32 in cuDNN": lambda: setattr(BACKENDS.cudnn, "allow_tf32", False),
    "TF32 in cuDNN": lambda: setattr(BACKENDS.cudnn, "fp32_precision", "tf32"),
    "TF32 everywhere": lambda: setattr(BACKENDS, "fp32_precision", "tf32"),
    "flags that are apart": apart,
}


@pytest.fixture(autouse=True)
def as_torch_starts() -> Iterator[None]:
    plain()
    yield
    plain()


@pytest.mark.parametrize("caller", CALLERS)
def test_every_flag_is_set_can_be_read_inside_and_comes_back(caller: str) -> None:
    CALLERS[caller]()
    before = flags(), BACKENDS.mha.get_fastpath_enabled()
    for tf32, matmul, kind in ((False, "highest", "ieee"), (True, "high", "tf32")):
        with exact_math(tf32=tf32):
            inside = flags()
            assert not BACKENDS.mha.get_fastpath_enabled()
        assert inside.pop("matmul") == matmul
        assert {inside.pop("cuda.allow_tf32"), inside.pop("cudnn.allow_tf32")} == {tf32}
        inside.pop("cudnn")  # of both below it, which have their own
        assert set(inside.values()) == {kind}
        assert (flags(), BACKENDS.mha.get_fastpath_enabled()) == before


def test_inside_one_another_the_inner_one_rules_and_the_outer_one_comes_back() -> None:
    with exact_math(tf32=True):
        with exact_math():
            assert BACKENDS.cuda.matmul.fp32_precision == "ieee"
        assert BACKENDS.cuda.matmul.fp32_precision == "tf32"
