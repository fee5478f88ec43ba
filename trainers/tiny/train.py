"""Make the shipped weights again and print the table of accuracies: `python -m trainers.tiny.train`."""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import open_clip
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from trainers.data.drawn.corpus import Corpus, load_corpus
from trainers.model.bundled import ARCH, register, weights_path
from trainers.model.pretrained import load_clip
from trainers.schema.training import ModelConfig
from trainers.tiny.report import format_tables, measure_all

NUM_IMAGES, STEPS = 90_000, 4500  # of the shipped weights


def normalize(model: open_clip.CLIP, images: Tensor) -> Tensor:
    """uint8 or [0, 1] images as the visual tower wants them: open_clip's default mean and deviation."""
    images = images.float() / 255 if images.dtype == torch.uint8 else images
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.visual.image_mean, model.visual.image_std))
    return (images - mean) / std


def shifted(images: Tensor, generator: torch.Generator, *, reach: int = 2) -> Tensor:
    """Every image moved by up to `reach` pixels each way; the border is repeated."""
    n, _, height, width = images.shape
    dy, dx = torch.randint(-reach, reach + 1, (2, n, 1), generator=generator)
    rows = (torch.arange(height) + dy).clamp(0, height - 1)
    columns = (torch.arange(width) + dx).clamp(0, width - 1)
    picked = images.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2)


def contrastive_loss(
    images: Tensor, texts: Tensor, scale: Tensor, *, shown: Tensor, said: Tensor, which: Tensor
) -> Tensor:
    """CLIP's loss for captions that repeat or say less than the image shows.

    `texts` are the distinct statements of the batch, `said` [T, 3] what they say, `which` [B] the statement of every
    image. A statement that is true of an image but is not its own is neither positive nor negative.
    """
    logits = scale * images @ texts.T
    same = (said[None, :, :2] == shown[:, None, :2]).all(-1)
    true = same & ((said[None, :, 2] == -1) | (said[None, :, 2] == shown[:, None, 2]))
    own = F.one_hot(which, len(texts)).bool()
    logits = logits.masked_fill(true & ~own, -torch.inf)
    to_text = F.cross_entropy(logits, which)
    log_images = logits.log_softmax(0).masked_fill(~own, 0)
    to_image = -(log_images.sum(0) / own.sum(0)).mean()
    return (to_text + to_image) / 2


def fit(corpus: Corpus, *, seed: int, steps: int = STEPS, batch_size: int = 256, lr: float = 1.5e-3, warmup: int = 200,
        weight_decay: float = 0.05, log_every: int = 100) -> open_clip.CLIP:  # fmt: skip
    """Train a fresh tiny CLIP with AdamW and a cosine schedule."""
    register()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = open_clip.create_model(ARCH).train()
    tokens = open_clip.get_tokenizer(ARCH)(list(corpus.captions))
    generator = torch.Generator().manual_seed(seed)
    plain = [p for p in model.parameters() if p.ndim < 2]
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=True)
    began, total = time.perf_counter(), 0.0
    order = torch.empty(0, dtype=torch.int64)
    for step in range(steps):
        if len(order) < batch_size:
            order = torch.randperm(len(corpus.captions), generator=generator)
        batch, order = order[:batch_size], order[batch_size:]
        rate = lr * min(1, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = rate
        said, which = corpus.said[batch].unique(dim=0, return_inverse=True)
        first = torch.full((len(said),), batch_size).scatter_reduce(0, which, torch.arange(batch_size), "amin")
        pixels = normalize(model, shifted(corpus.images[batch], generator))
        images = F.normalize(model.encode_image(pixels), dim=-1)
        texts = F.normalize(model.encode_text(tokens[batch[first]]), dim=-1)
        loss = contrastive_loss(images, texts, model.logit_scale.exp(), shown=corpus.shown[batch], said=said,
                                which=which)  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(max=math.log(100))
        total += loss.item()
        if (step + 1) % log_every == 0:
            seconds = time.perf_counter() - began
            eta = seconds / (step + 1) * (steps - step - 1)
            print(f"step {step + 1}/{steps}  loss {total / log_every:.3f}  scale {model.logit_scale.exp().item():.0f}  "
                  f"{seconds:.0f} s, {eta:.0f} s left", flush=True)  # fmt: skip
            total = 0.0
    return model.eval()


def save(model: open_clip.CLIP, path: Path) -> None:
    """The whole state dict in half precision (loading gives float32)."""
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, str(path))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m trainers.tiny.train", description=__doc__)
    parser.add_argument("--out", type=Path, default=weights_path(), help="file to write (default: the shipped weights)")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus, the first weights and the order")
    parser.add_argument("--report-only", action="store_true", help="train nothing, only measure --out")
    parser.add_argument("--samples", type=int, help="images per set to measure (default: all)")
    arguments = parser.parse_args()
    if not arguments.report_only:
        print(f"drawing {NUM_IMAGES} images (kept in the cache folder) ...", flush=True)
        save(fit(load_corpus(arguments.seed, num_images=NUM_IMAGES), seed=arguments.seed), arguments.out)
    clip = load_clip(ModelConfig(arch=ARCH, pretrained=str(arguments.out)))
    print(format_tables(measure_all(clip, samples=arguments.samples)))


if __name__ == "__main__":
    main()
