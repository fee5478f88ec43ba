"""MI-, DI- and TI-FGSM: iterated sign steps from the image, made so that the perturbation fools other models too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.attacks.case import Case, Outcome
from trainers.attacks.geometry import per_image
from trainers.attacks.losses import aim
from trainers.draws import uniform
from trainers.schema.attacks import DIFGSM, MIFGSM, TIFGSM


def mi_fgsm_attack(case: Case, parameters: MIFGSM) -> Outcome:
    """v <- decay * v + g / mean|g|;  x <- clip(x + step * sign(v)), from the image. Dong et al. 2018, algorithm 1.

    (The paper divides by the sum of |g|: the same direction.) Looks at every iterate.
    """
    return _iterate(case, parameters)


def di_fgsm_attack(case: Case, parameters: DIFGSM) -> Outcome:
    """As MI-FGSM, the gradient taken of the shrunk and padded image (`shrink_and_pad`). Xie et al. 2019.

    Every image draws its own size and place; torchattacks draws one for the batch. Looks at the final images only: the
    others are seen by the model in another form.
    """
    return _iterate(case, parameters, diverse=parameters)


def ti_fgsm_attack(case: Case, parameters: TIFGSM) -> Outcome:
    """As DI-FGSM, the gradient then convolved with a Gaussian (`gaussian_kernel`). Dong et al. 2019, equation 8."""
    kernel = gaussian_kernel(parameters.kernel_size, parameters.kernel_sigmas).to(case.images.device)
    return _iterate(case, parameters, diverse=parameters, kernel=kernel)


def gaussian_kernel(size: int, sigmas: float) -> Tensor:
    """Separable kernel fp32 [size], sum 1: a normal density from -sigmas to +sigmas standard deviations."""
    weights = torch.exp(-torch.linspace(-sigmas, sigmas, size, dtype=torch.float64).square() / 2)
    return (weights / weights.sum()).float()


def _smooth(gradient: Tensor, kernel: Tensor) -> Tensor:
    """Each channel convolved with kernel x kernel, zeros outside, same size."""
    channels, size = gradient.shape[1], len(kernel)
    columns = kernel.view(1, 1, size, 1).expand(channels, 1, size, 1)
    rows = columns.transpose(2, 3)
    smooth = F.conv2d(gradient, columns, padding="same", groups=channels)
    return F.conv2d(smooth, rows, padding="same", groups=channels)


def shrink_and_pad(images: Tensor, draws: Tensor, *, rate: float, probability: float) -> Tensor:
    """Every image shrunk (bilinear) and put somewhere on zeros of its old size, or left alone; differentiable.

    `draws` fp32 [B, 4] in (0, 1) decide: whether at all (< `probability`), the size (a whole number of pixels from
    floor(rate * size) to one less than the size), the rows above, the columns to the left. A resize is linear and
    separable, so it is a product with one matrix from the left and one from the right, and images of different sizes
    stay one batch.
    """
    height, width = images.shape[2:]
    shrinks = draws[:, 0] < probability
    left, right = (
        _resize_matrix(side, draws[:, 1], draws[:, place], rate).where(
            shrinks[:, None, None], torch.eye(side, device=images.device)
        )
        for side, place in ((height, 2), (width, 3))
    )
    return left[:, None] @ images @ right[:, None].transpose(2, 3)


def _resize_matrix(side: int, size_draw: Tensor, place_draw: Tensor, rate: float) -> Tensor:
    """fp32 [B, side, side]: bilinear resize of `side` pixels to fewer, then padding, by draws [B] in (0, 1)."""
    least = max(int(side * rate), 1)
    size = (least + (size_draw * (side - least)).floor()).clamp_max(max(side - 1, 1))[:, None]
    before = (place_draw[:, None] * (side - size)).floor()
    place = torch.arange(side, device=size.device)[None] - before  # of a pixel in the shrunk image
    source = ((place + 0.5) * side / size - 0.5).clamp(0, side - 1)
    low = source.floor()
    fraction = source - low
    inside = ((place >= 0) & (place < size)).float()
    rows = torch.zeros(len(size), side, side, device=size.device)
    rows.scatter_add_(2, low.long()[..., None], ((1 - fraction) * inside)[..., None])
    return rows.scatter_add_(2, (low.long() + 1).clamp_max(side - 1)[..., None], (fraction * inside)[..., None])


def _iterate(
    case: Case,
    parameters: MIFGSM | DIFGSM | TIFGSM,
    *,
    diverse: DIFGSM | TIFGSM | None = None,
    kernel: Tensor | None = None,
) -> Outcome:
    loss = aim(case.labels, case.targets(parameters.target))
    step_size = parameters.resolved_step_size(case.eps)
    worst, x, velocity = case.worst(), case.images.clone(), torch.zeros_like(case.images)
    for step in range(parameters.steps):
        with torch.enable_grad():
            x.requires_grad_(True)
            shown = x
            if diverse is not None:
                draws = uniform(case.seed, "diversity", step, case.index, 4)
                rate, probability = diverse.resize_rate, diverse.diversity_probability
                shown = shrink_and_pad(x, draws, rate=rate, probability=probability)
            logits = case.ask(shown, worst.done)
            (gradient,) = torch.autograd.grad(loss(logits).sum(), x)
        if diverse is None:
            worst.look(logits, x)
        if kernel is not None:
            gradient = _smooth(gradient, kernel)
        size = gradient.abs().flatten(1).mean(1)
        velocity = parameters.decay * velocity + gradient / per_image(size.where(size > 0, 1.0), gradient)
        x = case.project(x.detach() + step_size * velocity.sign())
    x = x.detach()
    with torch.no_grad():
        worst.look(case.ask(x, worst.done), x)
    return Outcome(x, worst)
