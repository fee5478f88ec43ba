"""Measure a promoted model from S3 in a process of its own: plain open_clip, and an attack that is not ours.

    python tests/bench/measure_champion.py [VERSION]

Nothing of the training or evaluation code is used, only the images: the model is loaded by boto3 and open_clip, and
PGD is the few lines below (strict protocol: uniform start, 10 steps of eps/4, an image that any iterate fools is
fooled, wrong ones count as fooled). Prints every final set of the demo, all images. S3 comes from the environment.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable

import boto3
import open_clip
import torch
from torch import Tensor
from torch.nn import functional

from trainers.data import load_dataset
from trainers.data.drawn.datasets import STATED_EPS, TINY_ROLES
from trainers.model.bundled import ARCH, register, weights_path

MODEL, STEPS, BATCH = "robust-clip", 10, 100
Classifier = Callable[[Tensor], Tensor]


def download(folder: str, version: int | None) -> None:
    """The champion's (or a version's) two files."""
    s3, bucket = boto3.client("s3"), os.environ["AGFT_BUCKET"]
    if version is None:
        version = json.loads(s3.get_object(Bucket=bucket, Key=f"models/{MODEL}/HEAD.json")["Body"].read())["champion"]
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        s3.download_file(bucket, f"models/{MODEL}/{version:04d}/{name}", f"{folder}/{name}")


def classifier(clip: torch.nn.Module, tokenizer: Callable[[list[str]], Tensor], prompts: list[list[str]]) -> Classifier:
    """Images in [0, 1] -> logits at the model's own scale."""
    clip.eval().requires_grad_(False)
    mean, std = (torch.tensor(clip.visual.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    texts = torch.stack([clip.encode_text(tokenizer(sentences), normalize=True).mean(0) for sentences in prompts])
    weights = clip.logit_scale.exp() * functional.normalize(texts, dim=1)
    return lambda images: clip.encode_image((images - mean) / std, normalize=True) @ weights.T


def measure(logits: Classifier, images: Tensor, labels: Tensor) -> tuple[int, int]:
    """How many are right without and with the attack."""
    generator = torch.Generator().manual_seed(0)
    right = robust = 0
    for start in range(0, len(labels), BATCH):
        clean, truth = images[start : start + BATCH] / 255, labels[start : start + BATCH]
        alive = logits(clean).argmax(1) == truth
        right += int(alive.sum())
        x = (clean + STATED_EPS * (2 * torch.rand(clean.shape, generator=generator) - 1)).clamp(0, 1)
        for step in range(STEPS + 1):
            x.requires_grad_(True)
            scores = logits(x)
            alive &= scores.argmax(1) == truth
            if step < STEPS:
                (gradient,) = torch.autograd.grad(functional.cross_entropy(scores, truth, reduction="sum"), x)
                x = x.detach() + STATED_EPS / 4 * gradient.sign()
                x = torch.minimum(torch.maximum(x, clean - STATED_EPS), clean + STATED_EPS).clamp(0, 1)
        robust += int(alive.sum())
    return right, robust


def main() -> None:
    register()
    with tempfile.TemporaryDirectory() as folder:
        download(folder, int(sys.argv[1]) if len(sys.argv) > 1 else None)
        promoted, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    unmodified = open_clip.create_model(ARCH, pretrained=str(weights_path()))
    for label, clip in (("unmodified CLIP", unmodified), ("promoted", promoted)):
        rows = []
        for name in TINY_ROLES["final"]:
            data = load_dataset(name)
            right, robust = measure(classifier(clip, tokenizer, data.prompts()), data.images, data.labels)
            rows.append((name, 100 * right / len(data), 100 * robust / len(data)))
        clean, robust_mean = (sum(row[i] for row in rows) / len(rows) for i in (1, 2))
        sets = "  ".join(f"{name} {c:.1f}/{r:.1f}" for name, c, r in rows)
        print(f"{label:<16} clean {clean:5.1f}  robust {robust_mean:5.1f}   {sets}", flush=True)


if __name__ == "__main__":
    main()
