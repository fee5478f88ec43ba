"""Logits of a model over one set of classes, by an arithmetic that nothing but the image can change.

Every forward runs in a batch of one fixed size (padded at the end), in IEEE fp32. Measured: with the batch's shape
fixed, an image's logits and gradient do not depend on its place in the batch, on its neighbours, or on the number of
threads. So whoever is done can be left out, and the others moved together.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

from trainers.arithmetic import exact_math
from trainers.data.base import Images
from trainers.data.prefetch import prefetched
from trainers.device import out_of_memory
from trainers.model.robust import RobustCLIP

CPU_BYTES = 2 << 30  # of activations that a CPU worker may hold
CUDA_SHARE = 0.5  # of a GPU's free memory
MOST_IMAGES = 1024
USUAL = {"cpu": 32, "cuda": 128}  # small on a CPU, where padding is what costs
GRAPH_SHARE = 0.5  # of a GPU's whole memory, for the graph of one micro-batch

Found = TypeVar("Found")


def usual_batch(device: torch.device) -> int:
    """Images in every forward that keeps no graph on this kind of device, and at most in one that does."""
    return USUAL["cpu" if device.type == "cpu" else "cuda"]


def graph_room(device: torch.device) -> int:
    """Bytes that the graph of one micro-batch may take: the same on every CPU, and on all GPUs of a kind."""
    if device.type != "cuda":
        return CPU_BYTES
    total = torch.cuda.get_device_properties(device).total_memory  # however much of it is free
    return int(GRAPH_SHARE * total * torch.cuda.get_per_process_memory_fraction(device))


def micro_batch(model: RobustCLIP, device: torch.device) -> int:
    """Images in every evaluation forward of this model here: the usual number, halved until its graph fits."""
    size, room = usual_batch(device), graph_room(device)
    image = torch.zeros(1, 3, model.image_size, model.image_size, device=device, requires_grad=True)
    with exact(model):
        each = graph_bytes(model, lambda: model.embed(image))
    while size > 1 and size * each > room:
        size //= 2
    return size


def graph_bytes(model: RobustCLIP, forward: Callable[[], Tensor]) -> int:
    """What the graph of a forward keeps in memory for its backward, beside the model's weights."""
    kept: dict[int, torch.UntypedStorage] = {}  # alive until the sum is made: a freed address may come again
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def count(tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        # Nothing is packed: a graph that was handed its own outputs back would hold itself for ever.

    with torch.autograd.graph.saved_tensors_hooks(count, lambda nothing: nothing):
        forward()
    return sum(storage.nbytes() for storage in kept.values())


def padded(rows: Tensor, size: int) -> Tensor:
    """`rows` [n, ...], 0 < n <= size, with copies of the last one up to [size, ...]."""
    return (
        rows if len(rows) == size else torch.cat([rows, rows[-1:].detach().expand(size - len(rows), *rows.shape[1:])])
    )


class Scorer:
    """A model and unit class embeddings, fp32 [K, D]: what an evaluation attack is given as `Case.logits`.

    `rows` counts the images whose logits were computed, padding left out.
    """

    def __init__(self, model: RobustCLIP, classes: Tensor) -> None:
        self.model = model
        self.device = next(model.parameters()).device
        self.classes = classes.to(self.device)
        self.size = micro_batch(model, self.device)
        self.rows = 0

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    def pixels(self, images: Tensor) -> Tensor:
        """uint8 [B, 3, H, W] -> fp32 in [0, 1] on the model's device."""
        return images.to(self.device).float() / 255

    def __call__(self, images: Tensor, done: Tensor | None = None) -> Tensor:
        """Logits fp32 [B, K] at the model's own scale, of images fp32 [B, 3, H, W] in [0, 1], any B.

        Rows that are `done` (bool [B]) get zeros, at no cost and with a gradient of zero.
        """
        if done is None or not done.any():
            return self._logits(images)
        wanted = (~done).nonzero().squeeze(1)
        nothing = images.flatten(1)[:, :1] * torch.zeros(1, self.num_classes, device=images.device)
        return nothing.index_copy(0, wanted, self._logits(images[wanted])) if len(wanted) else nothing

    def _logits(self, images: Tensor) -> Tensor:
        if len(images) == 0:
            return torch.zeros(0, self.num_classes, device=self.device)
        self.rows += len(images)
        parts = []
        for part in images.split(self.size):  # the product with the class embeddings, too, has one shape only
            whole = self.model.embed(padded(part, self.size))
            parts.append(self.model.logits(whole, self.classes, self.model.logit_scale)[: len(part)])
        return torch.cat(parts) if len(parts) > 1 else parts[0]


def embed_images(model: RobustCLIP, images: Images, index: Tensor, device: torch.device) -> Tensor:
    """Raw embeddings, fp32 [len(index), D] on `device`, of `images` uint8 [N, 3, H, W] at `index`."""
    size = usual_batch(device)

    def embed(rows: Tensor) -> Tensor:
        return model.embed(padded(rows, size).to(device).float() / 255)[: len(rows)]

    with torch.no_grad(), exact(model):
        if len(index) == 0:
            return embed(images[torch.zeros(1, dtype=torch.int64)])[:0]
        return torch.cat([embed(rows) for rows in prefetched(images, index.split(size), device)])


@contextlib.contextmanager
def exact(*models: RobustCLIP) -> Iterator[None]:
    """IEEE fp32 without gradients of weights; precision and flags of the models are restored on leaving."""
    before = [(model, model.precision, [p.requires_grad for p in model.parameters()]) for model in models]
    try:
        for model in models:
            model.requires_grad_(False).precision = "fp32"
        with exact_math():
            yield
    finally:
        for model, precision, flags in before:
            model.precision = precision
            for parameter, flag in zip(model.parameters(), flags, strict=True):
                parameter.requires_grad_(flag)


def fitting_batch(scorer: Scorer, shape: tuple[int, ...]) -> int:
    """How many images of this `shape` [3, H, W] may be under attack together: what their graphs take, in memory.

    One micro-batch is computed to see what its graph keeps. At least one micro-batch, at most 1024 images.
    """
    images = torch.zeros(scorer.size, *shape, device=scorer.device, requires_grad=True)
    with exact(scorer.model):
        each = max(1, graph_bytes(scorer.model, lambda: scorer(images)) // scorer.size)
    room = CPU_BYTES
    if scorer.device.type == "cuda":
        unused = torch.cuda.memory_reserved(scorer.device) - torch.cuda.memory_allocated(scorer.device)
        room = int(CUDA_SHARE * (torch.cuda.mem_get_info(scorer.device)[0] + unused))
    return max(1, min(MOST_IMAGES, room // each) // scorer.size) * scorer.size


def fitting(batch: int, least: int, compute: Callable[[int], Found]) -> Found:
    """`compute(batch)`, with half as many images whenever memory turns out too small; how many decides no verdict."""
    while True:
        try:
            return compute(batch)
        except (RuntimeError, MemoryError) as error:
            if batch <= least or not out_of_memory(error):
                raise
            batch = max(least, batch // 2)
        torch.cuda.empty_cache()


def device_name(device: torch.device) -> str:
    """`cpu`, or what the GPU calls itself."""
    return "cpu" if device.type == "cpu" else torch.cuda.get_device_name(device)
