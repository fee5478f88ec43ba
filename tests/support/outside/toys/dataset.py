"""A dataset that is drawn: grey squares, dark and bright."""

from __future__ import annotations

from trainers.data.base import DatasetEntry, ImageSet

NUMBER = 20


def draw() -> ImageSet:
    import torch

    labels = torch.arange(NUMBER) % 2
    levels = (60 + 130 * labels + torch.arange(NUMBER)).to(torch.uint8)
    images = levels[:, None, None, None].expand(NUMBER, 3, 32, 32).contiguous()
    return ImageSet("toy-greys", images, labels, ("dark square", "bright square"), ("a {}.",))


TOY_GREYS = DatasetEntry("toy-greys", draw, NUMBER, 2, "drawn by the toys", "dark and bright squares")
