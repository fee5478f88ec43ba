"""torch.compile for the image encoder, proved before it is trusted; otherwise eager, and said loudly."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from trainers.model.robust import RobustCLIP

TOLERANCE = {"fp32": 1e-3, "bf16": 0.1, "fp16": 0.05}  # relative L2 distance; ten times as much for gradients


def compile_encoder(model: RobustCLIP, batches: Sequence[Tensor], *, backend: str = "inductor") -> None:
    """Make the model's training forward a compiled one, if it proves right; else `model.compile_note` says why not.

    On every one of `batches` (images of each size that training will see), the forward without gradients and both
    backward passes that training takes (to the images in the attack, to the weights in the update) must agree with the
    eager encoder's. A shape that fails to compile later makes the model eager then. Evaluation never is compiled.
    """
    model.compile_note = None
    try:
        compiled: Callable[[Tensor], Tensor] = torch.compile(model.visual, backend=backend)
        for images in batches:
            model.__dict__.pop("compiled", None)
            eager = _passes(model, images)
            model.__dict__["compiled"] = compiled
            _compare(eager, _passes(model, images), TOLERANCE[model.precision])
            if model.compile_note is not None:
                return
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever it is, eager training is right
        model.stop_compiled(error)


def _passes(model: RobustCLIP, images: Tensor) -> dict[str, Tensor]:
    """Embeddings, and the gradients to images and weights of their squared length."""
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        with torch.no_grad():
            embeddings = model.embed(images)
        attacked = images.detach().clone().requires_grad_(True)
        (to_images,) = torch.autograd.grad(model.embed(attacked).square().sum(), attacked)
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
    to_weights = torch.autograd.grad(model.embed(images).square().sum(), learning, allow_unused=True)
    flat = torch.cat([gradient.flatten().float() for gradient in to_weights if gradient is not None])
    return {"embeddings": embeddings, "image gradients": to_images, "weight gradients": flat}


def _compare(eager: dict[str, Tensor], compiled: dict[str, Tensor], limit: float) -> None:
    for name, expected in eager.items():
        apart = float((compiled[name] - expected).norm() / expected.norm())
        if not apart <= limit * (1 if name == "embeddings" else 10):
            raise RuntimeError(f"compiled {name} differ from eager ones by {apart:.2g} in relative L2 norm")
