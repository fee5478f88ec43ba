"""Weights between a CLIP and its robust fine-tuning: clean accuracy against robustness, without training.

W(a) = (1 - a) W_CLIP + a W_robust, the image encoder only (the `mix_alpha` of TeCoA's code, Mao et al. 2023).
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from trainers.errors import UserError
from trainers.model.build import describe
from trainers.model.definitions import differences

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
