"""torch.compile for the image encoder, proved on one batch before it is trusted; otherwise eager, and said loudly."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from trainers.model import RobustCLIP

__all__ = ["compile_encoder"]

logger = logging.getLogger(__name__)
TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}  # of the embeddings, relative to their largest entry


def compile_encoder(model: RobustCLIP, images: Tensor, *, backend: str = "inductor") -> str | None:
    """Make the model's training forward a compiled one; returns None, or why it stays eager (also logged).

    Forward and both backward passes that training takes (to the images in the attack, to the weights in the update)
    are run on `images` and must agree with the eager encoder. Evaluation switches it off (`eager`).
    """
    try:
        compiled: Callable[[Tensor], Tensor] = torch.compile(model.visual, backend=backend)
        _prove(model, compiled, images)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # a compiler may fail in any way; whatever it is, eager training is right
        reason = f"torch.compile: {type(error).__name__}: {' '.join(str(error).split())[:300]}; training runs eagerly"
        logger.warning("%s", reason)
        model.__dict__.pop("compiled", None)
        return reason
    model.__dict__["compiled"] = compiled
    return None


def _prove(model: RobustCLIP, compiled: Callable[[Tensor], Tensor], images: Tensor) -> None:
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found: list[tuple[Tensor, Tensor]] = []
    for encoder in (None, compiled):
        model.__dict__["compiled"] = encoder
        for parameter in learning:
            parameter.requires_grad_(False)
        try:
            attacked = images.detach().clone().requires_grad_(True)
            (gradient,) = torch.autograd.grad(model.embed(attacked).square().sum(), attacked)
        finally:
            for parameter in learning:
                parameter.requires_grad_(True)
        embeddings = model.embed(images)
        torch.autograd.grad(embeddings.square().sum(), learning, allow_unused=True)
        found.append((embeddings.detach(), gradient))
    (eager, eager_gradient), (ours, our_gradient) = found
    limit = TOLERANCE[model.precision]
    for name, left, right in (("embeddings", eager, ours), ("gradients", eager_gradient, our_gradient)):
        apart = float((left - right).abs().max() / left.abs().max())
        if not apart <= limit * (1 if name == "embeddings" else 10):
            raise RuntimeError(f"compiled {name} differ from eager ones by {apart:.2g} of the largest entry")
