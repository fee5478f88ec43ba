"""The checks: one function each over one `Subject`, one row in CHECKS, one section in docs/sanity.md."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor
from torch.nn.functional import cosine_similarity, one_hot

from trainers.draws import noise
from trainers.evaluation.sanity.settings import RECODINGS, STEPS, huge_eps, unmodified_eps
from trainers.evaluation.sanity.subject import NotApplicable, Subject
from trainers.schema.units import eps_label

SIGMAS = 3.0  # standard errors beyond which a difference is one
GAIN_SIGMAS = 2.0  # the same for a gain that a sound model never has
SAME = 1e-3  # of the spread of an image's logits
ZERO_PIXELS = 0.01
HUGE_LEFT = 0.01
UNMODIFIED_LEFT = 0.05
GAP, BLACK_BOX_GAIN = 0.05, 0.01
NOISE_SHARE = 0.5
FEW = 2  # images: so many decide nothing, whatever share of all they are


class Judged(NamedTuple):
    """A check's answer: has it failed, what was measured, its limit, and one sentence."""

    failed: bool
    value: float
    threshold: float
    message: str


def deterministic(s: Subject) -> Judged:
    half = max(1, min(s.batch, s.number) // 2)  # other neighbours, should the model look at them
    again = s.look(s.logits, s.images.flip(0), half).flip(0)
    moved, spread = (again - s.clean).abs().amax(), s.clean.std(1, correction=0).mean()
    value = float(moved / spread.clamp_min(1e-9))
    text = f"looked at again in another order, a logit moved by at most {value:.2g} of the spread of an image's logits"
    return Judged(value > SAME, value, SAME, text)


def above_chance(s: Subject) -> Judged:
    chance = _chance(s)
    value, limit = _share(s.right), chance + SIGMAS * math.sqrt(chance * (1 - chance) / s.number)
    if value <= limit and s.original is not None and _share(s.original_clean.argmax(1) == s.truth) <= limit:
        raise NotApplicable(f"the unmodified CLIP itself is not above the {_percent(limit)} that chance can reach here")
    text = f"{_percent(value)} of the images are right without attack; by chance it could be up to {_percent(limit)}"
    return Judged(value <= limit, value, limit, text)


def agrees_with_original(s: Subject) -> Judged:
    """Cohen's kappa of the two models' predictions (Educational and Psychological Measurement, 1960)."""
    mine, others = s.clean.argmax(1), s.original_clean.argmax(1)
    same = _share(mine == others)
    by_chance = float(sum(_share(mine == k) * _share(others == k) for k in range(s.num_classes)))
    if by_chance == 1:
        raise NotApplicable("both models say the same class of every image")
    value = (same - by_chance) / (1 - by_chance)
    limit = SIGMAS * math.sqrt(by_chance / (1 - by_chance) / s.number)
    text = (
        f"the model and the unmodified CLIP agree on {_percent(same)} of the images, {_percent(by_chance)} by chance: "
        f"kappa {value:.2f}, where unrelated models reach up to {limit:.2f}"
    )
    return Judged(value <= limit, value, limit, text)


def input_range(s: Subject) -> Judged:
    """Do the logits follow the label, or the unmodified CLIP's on the images as they are, better in another code?"""
    references = {"the label": one_hot(s.truth, s.num_classes)}
    if s.original is not None:
        references["the unmodified CLIP's"] = s.original_clean
    found = []
    for code, (recode, allowed) in RECODINGS.items():
        logits = s.look(s.logits, recode(s.images))
        for whom, reference in references.items():
            plain = _follows(s.clean, reference)
            gain, error = _rise(plain, _follows(logits, reference))
            limit = allowed + GAIN_SIGMAS * error
            before = float(plain.mean())
            text = f"the logits' correlation with {whom} is {before:.3f}, and {before + gain:.3f} on images {code}"
            found.append((gain - limit, Judged(gain > limit, gain, limit, text)))
    return max(found)[1]


def zero_gradients(s: Subject) -> Judged:
    margin, entropy = (float(share.double().mean()) for share in s.gradients[:2])
    broken = int((~s.gradients.finite).sum())
    sure = int((s.clean.softmax(1).gather(1, s.truth[:, None]) == 1).sum())
    text = f"the gradient is zero or not finite at {_percent(margin)} (margin) and {_percent(entropy)} (cross-entropy) "
    text += f"of the pixels, and the label's probability is 1 in fp32 on {sure} of {s.number} images"
    if broken:
        text += f": not finite on {broken}"
    elif margin > ZERO_PIXELS:
        text += ": the model hides its gradients"
    elif entropy > ZERO_PIXELS:
        text += ": saturation, not masking, as the margin has a gradient"
    return Judged(max(margin, entropy) > ZERO_PIXELS or broken > 0, max(margin, entropy), ZERO_PIXELS, text)


def loss_grows_with_steps(s: Subject) -> Judged:
    one, five, last = (s.strict[0][:, step].double() for step in (1, 5, STEPS))
    rise, error = _rise(one, last)
    falls = any(change < -SIGMAS * noise for change, noise in (_rise(one, five), _rise(five, last)))
    text = f"the mean cross-entropy after 1, 5 and {STEPS} steps of PGD is {one.mean():.3g}, {five.mean():.3g} and "
    text += f"{last.mean():.3g} nats"
    return Judged(falls or rise <= SIGMAS * error, rise, SIGMAS * error, text)


def random_noise_weaker(s: Subject) -> Judged:
    clean = _share(s.right)
    attack = clean - s.strict_left
    if attack <= FEW / s.number:
        raise NotApplicable(f"the attack itself costs only {round(attack * s.number)} of {s.number} images")
    corner = noise(s.seed, 0, 1, s.index, tuple(s.images.shape[1:])).sign()
    eps = s.eps / math.sqrt(s.pixels) if s.norm == "l2" else s.eps  # the corner is then eps away
    noisy = s.look(s.logits, (s.images + eps * corner).clamp(0, 1)).argmax(1) == s.truth
    value, limit = clean - _share(noisy), max(NOISE_SHARE * attack, FEW / s.number)
    text = f"random noise of the attack's radius costs {_points(value)} of accuracy, the attack {_points(attack)}"
    return Judged(value > limit, value, limit, text)


def pgd_apgd_gap(s: Subject) -> Judged:
    stronger = s.left(s.stronger)
    value, limit = s.strict_left - stronger, max(GAP, FEW / s.number)
    text = f"PGD with {STEPS} steps leaves {_percent(s.strict_left)} right, Auto-PGD {_percent(stronger)}"
    return Judged(value > limit, value, limit, text)


def black_box_not_better(s: Subject) -> Judged:
    looks = {"Square": lambda: s.queried, "transfer from the unmodified CLIP": lambda: s.transferred}
    if s.norm != "linf":
        del looks["Square"]
    if s.original is None:
        del looks["transfer from the unmodified CLIP"]
    if not looks:
        raise NotApplicable(f"Square is not defined in {s.norm}, and for a transfer the unmodified CLIP was not given")
    left = {name: s.left(look()) for name, look in looks.items()}
    value, limit = s.strict_left - min(left.values()), max(BLACK_BOX_GAIN, FEW / s.number)
    others = " and ".join(f"{name} {_percent(share)}" for name, share in left.items())
    text = f"with gradients PGD leaves {_percent(s.strict_left)} right, without {others}"
    return Judged(value > limit, value, limit, text)


def huge_budget(s: Subject) -> Judged:
    value, limit = s.left(s.huge), max(HUGE_LEFT, 1 / s.number)
    text = f"{_percent(value)} of the images stay right at {s.norm} {eps_label(huge_eps(s.norm, s.pixels))}"
    return Judged(value > limit, value, limit, text)


def unmodified_near_zero(s: Subject) -> Judged:
    right = s.original_clean.argmax(1) == s.truth
    value, limit = _share(right & ~s.unmodified), max(UNMODIFIED_LEFT, FEW / s.number)
    radius = eps_label(unmodified_eps(s.norm, s.pixels))
    text = f"the unmodified CLIP has {_percent(_share(right))} right, and {_percent(value)} at {s.norm} {radius}"
    return Judged(value > limit, value, limit, text)


def _chance(s: Subject) -> float:
    """The share of the most frequent label: what a model that says one class can have."""
    return float(s.truth.bincount().max()) / s.number


def _follows(logits: Tensor, reference: Tensor) -> Tensor:
    """Correlation over the classes of logits and reference, [n, K] each: fp64 [n], -1 to 1; 0 of constant logits."""
    one, other = (rows.double() - rows.double().mean(1, keepdim=True) for rows in (logits, reference))
    return cosine_similarity(one, other).nan_to_num(0)


def _rise(before: Tensor, after: Tensor) -> tuple[float, float]:
    """Mean of after - before over the images, and its standard error."""
    difference = (after - before).double()
    return float(difference.mean()), float(difference.std(correction=0)) / math.sqrt(len(difference))


def _share(where: Tensor) -> float:
    return float(where.double().mean())


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"


def _points(share: float) -> str:
    return f"{100 * share:.3g} points"
