"""Noise by counter: a pure function of the seed and of what it is for, so no generator has a state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

STREAMS = {"start": 0, "target": -1, "diversity": -2, "square": -3, "check": -4, "probe": -5}
"""What the draws of an evaluation are for, in the place that training has for its epoch: they share no number."""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_FACTORS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """A 64-bit pattern as the int64 that carries it."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift right; torch's is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser (Steele et al., OOPSLA 2014) on int64, which wraps alike on CPU and GPU."""
    x = (x ^ _shifted(x, 30)) * _signed(_FACTORS[0])
    x = (x ^ _shifted(x, 27)) * _signed(_FACTORS[1])
    return x ^ _shifted(x, 31)


def noise(seed: int, epoch: int, restart: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Uniform noise in (-1, 1), fp32 [B, *shape], a pure function of (seed, epoch, restart, sample index, position).

    `index` int64 [B]. No generator: the same image gets the same noise in any batch, on any worker or device.
    Values are odd multiples of 2^-23 less 1, so they are exact in fp32 and symmetric about 0.
    """
    key = torch.zeros((), dtype=torch.int64, device=index.device)
    for part in (seed, epoch, restart):
        key = _mix(key + _signed(part * _GOLDEN + _GOLDEN))
    keys = _mix(_mix(index.to(torch.int64) * _signed(_GOLDEN)) ^ key)
    counter = torch.arange(1, math.prod(shape) + 1, dtype=torch.int64, device=index.device) * _signed(_GOLDEN)
    bits = _shifted(_mix(keys[:, None] + counter), 41)  # 23 bits
    return ((2 * bits + 1).to(torch.float32) * 2.0**-23 - 1).reshape(len(index), *shape)


def uniform(seed: int, stream: str, number: int, index: Tensor, count: int) -> Tensor:
    """`count` draws from (0, 1) for every image, fp32 [B, count], by a stream of STREAMS and a number in it."""
    return (noise(seed, STREAMS[stream], number, index, (count,)) + 1) / 2
