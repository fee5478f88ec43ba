"""Clean and robust accuracy, image by image, from one load of model and data.

The verdict on an image depends neither on the batch size, nor on the number of workers, nor on its neighbours, nor on
which other images were skipped: forwards have one fixed shape (`trainers.evaluation.scorer`), and all random draws are
keyed by the image's index.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from trainers.attacks import Case, run_attack
from trainers.data import ImageSet, load_dataset
from trainers.data.prefetch import prefetched
from trainers.draws import noise
from trainers.evaluation.fast import fast_attack
from trainers.evaluation.readings import Readings, read, top_classes
from trainers.evaluation.scorer import Scorer, exact, fitting, fitting_batch
from trainers.evaluation.verdicts import SetResult, Verdicts, count, stratified_sample
from trainers.model.build import tokenizer_for
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.schema.suite import AttackAt, Protocol, Suite


def measure(
    scorer: Scorer,
    image_set: ImageSet,
    index: Tensor,
    entry: AttackAt,
    *,
    protocol: Protocol = "strict",
    seed: int = 0,
    batch_size: int | None = None,
    original: Scorer | None = None,
    surrogate: Scorer | None = None,
    skip: bool = True,
    looked: Callable[[int], None] = lambda images: None,
) -> Verdicts:
    """Verdicts on the images `index` (int64 [n]) under one attack at every one of its radii, each judged alone.

    Protocol strict: an image that is wrong already is not attacked; an image is fooled if *any* iterate fools it, the
    start included, and is then left alone. Protocol paper (AGFT section 4.1): every image, final iterate. Protocol
    fast: as strict, searched in half precision (`trainers.evaluation.fast`).
    An attack of a package that draws for the whole batch is given a micro-batch. `batch_size`: images under any other
    attack together, default: as many as memory holds; `skip=False` attacks also those whose
    verdict is settled, to no effect. Neither changes a verdict. `original`: the model whose top 5 on the clean images
    is compared with. `surrogate`: the model that a transfer attack is made on. `looked` is told, batch by batch, how
    many images were attacked.
    """
    labels, device = image_set.labels[index].to(torch.int64), scorer.device
    models = [each.model for each in (scorer, original, surrogate) if each is not None]
    batch_size = batch_size or fitting_batch(scorer, tuple(image_set.images.shape[1:]))
    strict, fast, package = protocol != "paper", protocol == "fast", not entry.attack.keyed
    with exact(*models):
        clean, others_top = _look(scorer, original, image_set, index, labels, batch_size)
        right = clean.prediction == labels
        todo = torch.arange(len(index))
        if strict and (skip or package):  # a package's draws depend on who else is in the batch
            todo = right.nonzero().squeeze(1)
        attacked, doubts = [], set()
        known = torch.zeros(len(entry.eps), len(index), dtype=torch.uint8)
        for radius, eps in enumerate(entry.eps):
            found = clean.each(torch.clone)
            where = todo if eps > 0 else todo[:0]
            for rows, images in _batches(scorer, image_set, index, where, scorer.size if package else batch_size):
                case = Case(
                    scorer,
                    images,
                    labels[rows].to(device),
                    index[rows].to(device),
                    eps,
                    scorer.num_classes,
                    norm=entry.norm,
                    seed=seed,
                    surrogate=surrogate,
                    skipping=strict and skip,
                )
                # Without skipping, images that were wrong already were attacked in vain: their record is the clean one.
                counted = right[rows] if strict else torch.ones(len(rows), dtype=torch.bool)
                if fast:
                    adversarial, how = fast_attack(scorer, case, entry.attack)
                    known[radius, rows[counted]] = how[counted]
                else:
                    outcome = run_attack(case, entry.attack)
                    doubts |= set(outcome.doubts)
                    adversarial = outcome.worst.images if strict else outcome.adversarial
                looked(len(rows))
                top = None if others_top is None else others_top[rows].to(device)
                with torch.no_grad():
                    now = read(scorer(adversarial), case.labels, scorer.model.logit_scale, top)
                found.put(rows[counted], now.at(counted))
            attacked.append(found)
    stacked = Readings.stack(attacked)
    said = tuple(sorted(doubts))
    return Verdicts(image_set.name, entry.eps, index, labels, clean, stacked, said, known if fast else None)


def _batches(
    scorer: Scorer, image_set: ImageSet, index: Tensor, where: Tensor, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Positions in `index`, `size` at a time out of `where`, with their images, fp32 on the device."""
    parts = where.split(size) if len(where) else ()
    pixels = prefetched(image_set.images, [index[rows] for rows in parts], scorer.device)
    for rows, images in zip(parts, pixels, strict=True):
        yield rows, scorer.pixels(images)


def _look(
    scorer: Scorer, original: Scorer | None, image_set: ImageSet, index: Tensor, labels: Tensor, batch_size: int
) -> tuple[Readings, Tensor | None]:
    """Readings of the clean images [n], and the original model's top classes there, int64 [n, k], if there is one."""
    parts, tops = [Readings.empty()], []
    with torch.no_grad():
        for rows, images in _batches(scorer, image_set, index, torch.arange(len(index)), batch_size):
            top = None
            if original is not None:
                top = top_classes(original(images))
                tops.append(top.cpu())
            parts.append(read(scorer(images), labels[rows].to(scorer.device), scorer.model.logit_scale, top))
    return Readings.join(parts), torch.cat(tops) if tops else None


def evaluate(
    model: RobustCLIP,
    image_set: ImageSet,
    class_embeddings: Tensor,
    suite: Suite,
    *,
    rank: int = 0,
    world_size: int = 1,
    looked: Callable[[int], None] = lambda images: None,
) -> Verdicts:
    """Verdicts under the suite's one attack on this rank's share of the sample, in fp32 whatever the model trains in.

    `class_embeddings` fp32 [K, D], unit norm. See `measure`.
    """
    (entry,) = suite.attacks
    sample = stratified_sample(image_set.labels, entry.samples, seed=suite.seed)[rank::world_size]
    scorer = Scorer(model, class_embeddings)

    def of(batch_size: int) -> Verdicts:
        how: dict[str, Any] = {
            "protocol": suite.protocol,
            "seed": suite.seed,
            "batch_size": batch_size,
            "looked": looked,
        }
        return measure(scorer, image_set, sample, entry, **how)

    batch_size = fitting_batch(scorer, tuple(image_set.images.shape[1:]))
    return fitting(batch_size, scorer.size, of)


def evaluate_sets(clip: nn.Module, suite: Suite, *, device: torch.device | str = "cpu") -> dict[str, SetResult]:
    """Counts of an open_clip model (from `load_clip`, `load_weights`) on the datasets of a suite of one attack."""
    clip = clip.to(device)
    model, tokenizer = RobustCLIP(clip), tokenizer_for(clip)
    results = {}
    for name in suite.datasets:
        image_set = load_dataset(name, path="data")
        classes = class_embeddings(clip, image_set.prompts(), tokenizer)
        results[name] = count(evaluate(model, image_set, classes, suite))
    return results


def random_noise(model: RobustCLIP, image_set: ImageSet, class_embeddings: Tensor, suite: Suite) -> SetResult:
    """Accuracy under a random corner of the ball (every pixel + eps or - eps) instead of the suite's one attack, which
    must do better than this."""
    (entry,) = suite.attacks
    index = stratified_sample(image_set.labels, entry.samples, seed=suite.seed)
    labels = image_set.labels[index].to(torch.int64)
    scorer = Scorer(model, class_embeddings)
    correct = [0] * (1 + len(entry.eps))
    with torch.no_grad(), exact(model):
        for rows, images in _batches(scorer, image_set, index, torch.arange(len(index)), scorer.size):
            corner = noise(suite.seed, 0, 1, index[rows].to(scorer.device), tuple(images.shape[1:])).sign()
            for number, eps in enumerate((0.0, *entry.eps)):
                found = scorer((images + eps * corner).clamp(0, 1)).argmax(1).cpu()
                correct[number] += int((found == labels[rows]).sum())
    return SetResult(image_set.name, len(index), correct[0], entry.eps, tuple(correct[1:]))
