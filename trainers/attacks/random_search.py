"""Square Attack: random search over squares, without gradients. Andriushchenko et al., ECCV 2020, arXiv:1912.00049."""

from __future__ import annotations

import torch

from trainers.attacks.case import Case, Outcome
from trainers.attacks.geometry import ball
from trainers.draws import STREAMS, noise, uniform
from trainers.schema.attacks import Square

HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries; section 3.2


def square_side(query: int, parameters: Square, height: int, width: int) -> int:
    """Side of the square of one query, pixels: its share of the image halves on the paper's schedule, rescaled."""
    done = query * 10_000 / parameters.queries
    share = parameters.p_init / 2 ** sum(done > halving for halving in HALVINGS)
    return min(max(round((share * height * width) ** 0.5), 1), height, width)


def square_attack(case: Case, parameters: Square) -> Outcome:
    """Keeps a change of one square to +-eps (one sign a channel) if it lowers the margin. Algorithms 1 and 2, L-inf.

    Starts from vertical stripes of +-eps; squares and signs are drawn for every image by its index. Ends when all
    images are done.
    """
    images, eps = case.images, case.eps
    channels, height, width = images.shape[1:]
    lower, upper = ball(images, eps)
    worst = case.worst()
    row, column = (torch.arange(side, device=images.device) for side in (height, width))
    with torch.no_grad():
        stripes = noise(case.seed, STREAMS["square"], 0, case.index, (channels, 1, width))
        worst.look(case.ask(x := torch.where(stripes > 0, upper, lower), worst.done), x)
        for query in range(1, parameters.queries):
            if worst.done.all():
                break
            side = square_side(query, parameters, height, width)
            draws = uniform(case.seed, "square", query, case.index, 2 + channels)
            top = (draws[:, :1] * (height - side + 1)).floor()
            left = (draws[:, 1:2] * (width - side + 1)).floor()
            rows, columns = (row >= top) & (row < top + side), (column >= left) & (column < left + side)
            inside = (rows[:, :, None] & columns[:, None, :])[:, None]
            corner = torch.where(draws[:, 2:, None, None] > 0.5, upper, lower)
            x = torch.where(inside, corner, worst.images)
            worst.look(case.ask(x, worst.done), x)
    return Outcome(worst.images, worst)
