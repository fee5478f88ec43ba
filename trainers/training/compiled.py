"""torch.compile for the image encoder, proved before it is trusted; otherwise eager, and said loudly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config

from trainers.device import out_of_memory
from trainers.model.robust import RobustCLIP

# relative L2 distance; ten times as much for gradients
TOLERANCE = {"fp32": 1e-3, "tf32": 0.02, "bf16": 0.1, "fp16": 0.05}


def compile_encoder(model: RobustCLIP, images: Tensor, *, backend: str = "inductor") -> None:
    """Make the model's training forward of this many images a compiled one, if it proves right; else
    `model.compile_note` says why not.

    The forward without gradients and both backward passes that training takes (to the images in the attack, to the
    weights in the update) must agree with the eager encoder's. Shapes are static: one graph that serves several sizes
    is a slower one, also for the usual size, so that another number of images, an epoch's last, is computed eagerly.
    What fails to compile later makes the model eager then. Evaluation never is compiled.
    """
    model.compile_note = None
    try:
        eager = _passes(model, images)
        encoder: Callable[[Tensor], Tensor] = torch.compile(model.visual, backend=backend, dynamic=False)

        def compiled(pixels: Tensor) -> Tensor:
            # Else dynamo goes on eagerly, without a word, once it has compiled one piece of code too often.
            with dynamo_config.patch(fail_on_recompile_limit_hit=True):
                return encoder(pixels)

        model.__dict__["compiled"] = (len(images), compiled)
        _compare(eager, _passes(model, images), TOLERANCE[model.precision])
    except Exception as error:  # whatever else it is, eager training is right
        if out_of_memory(error):
            raise
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
