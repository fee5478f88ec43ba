"""Clean and robust accuracy, image by image, with an arithmetic that nothing but the image can change.

Every forward runs in a batch of one fixed size (padded at the end), in IEEE fp32, and the attack's noise is keyed by
the image's index. So the verdict on an image depends neither on the user's batch size, nor on the number of workers,
nor on its neighbours, nor on which other images were skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainers.attacks import ATTACKS, ball, noise, predict, sign_step
from trainers.config import EvalAttack, EvalConfig
from trainers.data import Images, ImageSet, load_dataset
from trainers.model import RobustCLIP, class_embeddings, exact_math, tokenizer_for
from trainers.records import wilson
from trainers.verdicts import SetResult, Verdicts, count, gather, stratified_sample

__all__ = [
    "EvalAttack",
    "EvalConfig",
    "SetResult",
    "Verdicts",
    "count",
    "embed_images",
    "evaluate",
    "evaluate_sets",
    "gather",
    "micro_batch",
    "random_noise",
    "stratified_sample",
    "wilson",
]


def micro_batch(device: torch.device) -> int:
    """Images in every evaluation forward on this kind of device: small on a CPU, where padding is what costs."""
    return 32 if device.type == "cpu" else 128


class _Scorer:
    """Logits of one image set's images, always in batches of one size."""

    def __init__(self, model: RobustCLIP, images: Images, classes: Tensor, device: torch.device) -> None:
        self.model, self.images, self.device = model, images, device
        self.classes = classes.to(device)
        self.size = micro_batch(device)

    def load(self, index: Tensor) -> Tensor:
        """Images [len(index), 3, H, W] in [0, 1] on the device."""
        return self.images[index].to(self.device).float() / 255

    def logits(self, images: Tensor) -> Tensor:
        return self.model.logits(self.model.embed(images), self.classes, self.model.logit_scale)

    def batches(self, index: Tensor) -> Iterator[tuple[int, int, Tensor]]:
        """(first, last + 1, indices padded with the last one) of every micro-batch."""
        for first in range(0, len(index), self.size):
            part = index[first : first + self.size]
            yield first, first + len(part), torch.cat([part, part[-1:].expand(self.size - len(part))])


def embed_images(model: RobustCLIP, images: Images, index: Tensor, device: torch.device) -> Tensor:
    """Raw embeddings, fp32 [len(index), D] on `device`, of `images` uint8 [N, 3, H, W] at `index`."""
    scorer = _Scorer(model, images, torch.zeros(0), device)
    with torch.no_grad(), exact_math():
        parts = [model.embed(scorer.load(padded))[: end - first] for first, end, padded in scorer.batches(index)]
        width = model.embed(scorer.load(torch.zeros(1, dtype=torch.int64))).shape[1] if not parts else 0
    return torch.cat(parts) if parts else torch.zeros(0, width, device=device)


def evaluate(
    model: RobustCLIP,
    image_set: ImageSet,
    class_embeddings: Tensor,
    config: EvalConfig,
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Verdicts:
    """Verdicts on this rank's share of the sample. `class_embeddings` fp32 [K, D], unit norm; `seed`: config.seed.

    Protocol strict: an image that is already wrong is not attacked; an image is fooled if *any* iterate fools it, the
    start included, and is then left alone. Protocol paper (AGFT section 4.1): every image, final iterate.
    Both: PGD on the cross-entropy at the model's own scale, one random start, fp32 whatever the model trains in.
    """
    device, seed = torch.device(device), config.seed if seed is None else seed
    sample = stratified_sample(image_set.labels, config.samples, seed=seed)
    index = sample[rank::world_size]
    labels = image_set.labels[index].to(torch.int64)
    eps, n = config.attack.eps, len(index)
    clean = torch.zeros(n, dtype=torch.int64)
    clean_margin = torch.zeros(n)
    scorer = _Scorer(model, image_set.images, class_embeddings, device)
    flags, precision = [p.requires_grad for p in model.parameters()], model.precision
    try:
        model.requires_grad_(False).precision = "fp32"
        with exact_math():
            with torch.no_grad():
                for first, end, padded in scorer.batches(index):
                    own = image_set.labels[padded].to(device, torch.int64)
                    found, margin = predict(scorer.logits(scorer.load(padded)), own)
                    clean[first:end], clean_margin[first:end] = found[: end - first].cpu(), margin[: end - first].cpu()
            start = (rows.repeat(len(eps), 1) for rows in (clean != labels, clean, clean_margin))
            verdicts = Verdicts(image_set.name, eps, index, labels, clean, *start)
            for row, radius in enumerate(eps):
                if radius == 0:
                    continue
                todo = torch.arange(n) if config.protocol == "paper" else (clean == labels).nonzero().squeeze(1)
                attack = _attack_final if config.protocol == "paper" else _attack_any
                attack(scorer, verdicts, row, todo, config.attack, seed)
    finally:
        model.precision = precision
        for parameter, flag in zip(model.parameters(), flags, strict=True):
            parameter.requires_grad_(flag)
    return verdicts


def _attack_final(scorer: _Scorer, verdicts: Verdicts, row: int, todo: Tensor, attack: EvalAttack, seed: int) -> None:
    """The last iterate decides. `todo`: positions in `verdicts`."""
    eps = attack.eps[row]
    for first, end, padded in scorer.batches(todo):
        index, labels = verdicts.index[padded].to(scorer.device), verdicts.label[padded].to(scorer.device)
        images = scorer.load(verdicts.index[padded])

        def loss_fn(x: Tensor, labels: Tensor = labels) -> Tensor:
            return F.cross_entropy(scorer.logits(x), labels, reduction="none")

        adversarial = ATTACKS[attack.name](
            loss_fn,
            images,
            eps=eps,
            step_size=attack.resolved_step_size(eps),
            steps=attack.steps,
            start=noise(seed, 0, 0, index, tuple(images.shape[1:])),
        )
        with torch.no_grad():
            found, margin = predict(scorer.logits(adversarial), labels)
        _write(verdicts, row, todo[first:end], found[: end - first], margin[: end - first])


def _attack_any(scorer: _Scorer, verdicts: Verdicts, row: int, todo: Tensor, attack: EvalAttack, seed: int) -> None:
    """Any iterate decides: PGD over a pool of slots; whoever is fooled or done leaves, and the next image moves in.

    The pool keeps its size, so every forward has the same shape; slots without an image keep computing in vain.
    """
    eps = attack.eps[row]
    step_size = attack.resolved_step_size(eps)
    if len(todo) == 0:
        return
    slots, device = scorer.size, scorer.device
    where = torch.full((slots,), -1)  # position in `verdicts`, -1: empty
    taken = 0
    images = scorer.load(verdicts.index[todo[:1]]).repeat(slots, 1, 1, 1)
    adversarial, (lower, upper) = images.clone(), ball(images, eps)
    labels = verdicts.label[todo[:1]].to(device).repeat(slots)
    step = torch.zeros(slots, dtype=torch.int64)
    worst = torch.full((slots,), math.inf)
    while True:
        free = (where < 0).nonzero().squeeze(1)[: len(todo) - taken]
        if len(free):
            new = todo[taken : taken + len(free)]
            taken += len(free)
            where[free], step[free], worst[free] = new, 0, math.inf
            index, spot = verdicts.index[new], free.to(device)
            fresh = scorer.load(index)
            lower[spot], upper[spot] = ball(fresh, eps)
            start = noise(seed, 0, 0, index.to(device), tuple(fresh.shape[1:]))
            adversarial[spot] = torch.clamp(fresh + eps * start, lower[spot], upper[spot])
            labels[spot] = verdicts.label[new].to(device)
        busy = where >= 0
        if not busy.any():
            return
        adversarial.requires_grad_(True)
        logits = scorer.logits(adversarial)
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), adversarial)
        found_device, margin_device = predict(logits.detach(), labels)
        found, margin = found_device.cpu(), margin_device.cpu()
        fooled = found != labels.cpu()
        record = busy & ((margin < worst) | fooled)
        _write(verdicts, row, where[record], found[record], margin[record])
        worst = torch.where(record, margin, worst)
        where[busy & (fooled | (step >= attack.steps))] = -1
        step += 1
        adversarial = sign_step(adversarial.detach(), gradient, step_size=step_size, lower=lower, upper=upper)


def _write(verdicts: Verdicts, row: int, where: Tensor, prediction: Tensor, margin: Tensor) -> None:
    verdicts.adversarial_prediction[row, where] = prediction.cpu()
    verdicts.margin[row, where] = margin.cpu()
    verdicts.fooled[row, where] = prediction.cpu() != verdicts.label[where]


def evaluate_sets(
    clip: nn.Module,
    names: Sequence[str],
    config: EvalConfig,
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> dict[str, SetResult]:
    """Counts of an open_clip model (from `load_clip`, `load_weights`) on the datasets called `names`."""
    clip = clip.to(device)
    model, tokenizer = RobustCLIP(clip), tokenizer_for(clip)
    results = {}
    for name in names:
        image_set = load_dataset(name, path="data")
        classes = class_embeddings(clip, image_set.prompts(), tokenizer)
        share = evaluate(model, image_set, classes, config, seed=seed, device=device, rank=rank, world_size=world_size)
        results[name] = count(share)
    return results


def random_noise(
    model: RobustCLIP,
    image_set: ImageSet,
    class_embeddings: Tensor,
    config: EvalConfig,
    *,
    device: torch.device | str = "cpu",
) -> SetResult:
    """Accuracy under a random corner of the ball (every pixel + eps or - eps): an attack must do better than this."""
    device = torch.device(device)
    index = stratified_sample(image_set.labels, config.samples, seed=config.seed)
    labels = image_set.labels[index].to(torch.int64)
    scorer = _Scorer(model, image_set.images, class_embeddings, device)
    correct = [0] * (1 + len(config.attack.eps))
    with torch.no_grad(), exact_math():
        for row, eps in enumerate((0.0, *config.attack.eps)):
            for first, end, padded in scorer.batches(index):
                images = scorer.load(padded)
                corner = noise(config.seed, 0, 1, padded.to(device), tuple(images.shape[1:])).sign()
                found = scorer.logits((images + eps * corner).clamp(0, 1)).argmax(1).cpu()
                correct[row] += int((found[: end - first] == labels[first:end]).sum())
    return SetResult(image_set.name, len(index), correct[0], config.attack.eps, tuple(correct[1:]))
