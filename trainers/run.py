"""One fine-tuning run in memory: model, optimizer, data and history, advanced epoch by epoch by `loop.train`."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers import distributed
from trainers.attacks import noise
from trainers.checkpoint import CheckpointError, State, copy_file, read_metadata, restore, save_state, save_weights
from trainers.config import TrialConfig
from trainers.data import ImageSet, load_dataset
from trainers.evaluate import SetResult, count, embed_images, evaluate
from trainers.model import RobustCLIP, class_embeddings, load_clip, tokenizer_for
from trainers.objectives import Batch, Context, Losses, Objective
from trainers.optim import build_optimizer, learning_rate
from trainers.records import EpochRecord, is_better, violation

__all__ = ["BEST", "LATEST", "NonFinite", "Run", "epoch_order"]

LATEST, BEST = "latest.safetensors", "best.safetensors"


class NonFinite(RuntimeError):
    """The loss is infinite or not a number. The message gives the update, the parts of the loss and the device."""


def epoch_order(size: int, samples: int | None, *, seed: int, epoch: int) -> Tensor:
    """Indices of the epoch's images in training order: a permutation, or its first `samples`, by (seed, epoch)."""
    keys = noise(seed, epoch, -2, torch.arange(size), (1,)).squeeze(1)
    return torch.argsort(keys, stable=True)[: size if samples is None else samples]


@dataclass(frozen=True)
class DevSet:
    images: ImageSet
    classes: Tensor


class Run:
    """One run in memory: model, optimizer, data, history."""

    def __init__(self, config: TrialConfig, workdir: Path, device: torch.device, state: State | None) -> None:
        self.config, self.workdir, self.device = config, workdir, device
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.train_set = load_dataset(config.data.train, "data.train")
        dev = {name: load_dataset(name, f"data.dev.{i}") for i, name in enumerate(config.data.dev)}
        self.clip = load_clip(config.model).to(device)
        tokenizer = tokenizer_for(self.clip)
        self.dev = {
            name: DevSet(images, class_embeddings(self.clip, images.prompts(), tokenizer))
            for name, images in dev.items()
        }
        self.classes = class_embeddings(self.clip, self.train_set.prompts(), tokenizer)
        self.model = RobustCLIP(self.clip)
        self.method: Objective = config.method
        self.teacher = self.model.frozen_copy() if self.method.teacher_input == "adversarial" else None
        self.samples = min(config.train.samples_per_epoch or len(self.train_set), len(self.train_set))
        self.steps_per_epoch = math.ceil(self.samples / config.train.batch_size)
        self.teacher_embeddings = self._teacher_embeddings() if self.method.teacher_input == "clean" else None
        self.parameters = [p for p in self.model.visual.parameters() if p.requires_grad]
        self.optimizer = build_optimizer(config.train.optimizer, self.parameters)
        self.history: list[EpochRecord] = []
        self.step = 0
        if state is not None:
            restore(state, self.model, self.optimizer)
            self.history, self.step = list(state.history), state.step

    def _order(self, epoch: int) -> Tensor:
        return epoch_order(len(self.train_set), self.config.train.samples_per_epoch, seed=self.config.seed, epoch=epoch)

    def _teacher_embeddings(self) -> Tensor:
        """Raw clean embeddings, fp32 [N, D] on the CPU, of every image that the run will see, once; ranks share it."""
        used = torch.zeros(len(self.train_set), dtype=torch.bool)
        for epoch in range(self.config.train.epochs):
            used[self._order(epoch)] = True
            if bool(used.all()):
                break
        index = used.nonzero().squeeze(1)
        own = index[self.rank :: self.world_size]
        embedded = embed_images(self.model, self.train_set.images, own, self.device).cpu()
        everywhere = torch.zeros(len(self.train_set), embedded.shape[1])
        everywhere[distributed.gather_rows(own)] = distributed.gather_rows(embedded)
        return everywhere

    def _batch(self, index: Tensor) -> Batch:
        teacher = self.teacher_embeddings
        return Batch(
            images=self.train_set.images[index].to(self.device).float() / 255,
            labels=self.train_set.labels[index].to(self.device, torch.int64),
            index=index.to(self.device),
            teacher_embeddings=None if teacher is None else teacher[index].to(self.device),
        )

    def _update(self, index: Tensor, context: Context, lr: float) -> dict[str, float]:
        """One optimizer step on the global batch `index`; returns its mean loss and parts over all ranks."""
        self.optimizer.zero_grad(set_to_none=True)
        own = index[self.rank :: self.world_size]
        # A rank without a share of a short last batch computes a stranger's loss, times 0, to stay in step.
        weight, own = (1.0, own) if len(own) else (0.0, index[:1])
        losses = self.method.loss(self.model, self._batch(own), self.config.attack, context=context)
        (losses.total * weight).backward()
        values = self._sum_over_ranks(losses, weight)
        if not all(math.isfinite(value) for value in values.values()):
            parts = ", ".join(f"{name} {value:g}" for name, value in values.items())
            raise NonFinite(f"update {self.step}: the loss is not finite ({parts}) on {self.device}, lr {lr:g}")
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.step += 1
        return values

    def _sum_over_ranks(self, losses: Losses, weight: float) -> dict[str, float]:
        """Sum gradients, loss and parts over ranks, in one message, so that all ranks see the same numbers."""
        names = ["loss", *losses.parts]
        numbers = torch.stack([losses.total.detach(), *losses.parts.values()]) * weight
        if self.world_size > 1:
            touched = [parameter for parameter in self.parameters if parameter.grad is not None]
            flat = torch.cat([numbers, *(p.grad.reshape(-1) for p in touched)])  # type: ignore[union-attr]
            numbers, *summed = distributed.all_reduce_sum(flat).split([len(names), *(p.numel() for p in touched)])
            for parameter, gradient in zip(touched, summed, strict=True):
                parameter.grad = gradient.view_as(parameter)
        return dict(zip(names, numbers.tolist(), strict=True))

    def epoch(self) -> None:
        """One epoch of updates, its evaluation, its files."""
        train, epoch, began = self.config.train, len(self.history), time.monotonic()
        order = self._order(epoch)
        sums: dict[str, float] = {}
        lr = 0.0
        self.model.precision = train.precision
        for index in order.split(train.batch_size):
            lr = learning_rate(self.step, self.steps_per_epoch * train.epochs, train.optimizer.lr, train.warmup)
            context = Context(self.classes, self.config.seed, epoch, len(index), self.teacher)
            for name, value in self._update(index, context, lr).items():
                sums[name] = sums.get(name, 0.0) + value * len(index)
        means = {name: value / len(order) for name, value in sums.items()}
        train_seconds = time.monotonic() - began
        began = time.monotonic()
        results = [self._measure(name) for name in self.dev]
        eval_seconds = time.monotonic() - began
        record = EpochRecord(
            epoch=epoch + 1,
            timestamp_ms=int(time.time() * 1000),
            steps=self.step,
            train_loss=means.pop("loss"),
            parts=means,
            lr=lr,
            **self._standing(epoch + 1, results),
            train_seconds=train_seconds,
            eval_seconds=eval_seconds,
            images_per_second=len(order) / train_seconds,
        )
        self.history.append(record)
        self._save()

    def _measure(self, name: str) -> SetResult:
        """Counts over all ranks on one dev set."""
        dev, rank, ranks = self.dev[name], self.rank, self.world_size
        config, device = self.config.evaluate, self.device
        return count(evaluate(self.model, dev.images, dev.classes, config, device=device, rank=rank, world_size=ranks))

    def _standing(self, epoch: int, results: list[SetResult]) -> dict[str, Any]:
        """The record's fields about accuracies and the best epoch."""
        now = Accuracy(
            sum(result.clean_accuracy for result in results) / len(results),
            sum(result.robust_accuracy for result in results) / len(results),
        )
        last, goal = self.history[-1] if self.history else None, self.config.goal
        before = None if last is None else Accuracy(last.best_clean_accuracy, last.best_robust_accuracy)
        better = is_better(now, before, goal)
        best = now if before is None or better else before
        return {
            "clean_accuracy": now.clean_accuracy,
            "robust_accuracy": now.robust_accuracy,
            "datasets": {result.name: result.scores() for result in results},
            "feasible": violation(now, goal) == 0,
            "best_epoch": epoch if last is None or better else last.best_epoch,
            "best_clean_accuracy": best.clean_accuracy,
            "best_robust_accuracy": best.robust_accuracy,
            "best_feasible": violation(best, goal) == 0,
        }

    def _save(self) -> None:
        """On rank 0: the state, then the best weights; in this order a crash between the two can be made good."""
        if self.rank == 0:
            save_state(
                self.workdir / LATEST,
                self.model,
                self.optimizer,
                config=self.config,
                history=tuple(self.history),
                step=self.step,
            )
            if self.history[-1].best_epoch == len(self.history):
                self._save_best()

    def _save_best(self) -> None:
        config, record = self.config.model_dump(mode="json"), self.history[-1]
        save_weights(self.workdir / BEST, self.clip, config=config, record=record)

    def recover_best(self, folder: Path) -> None:
        """After a resume, on rank 0: the best weights from `folder`, or from the state where it is itself the best."""
        if self.rank or self.best is not None:
            return
        best = self.history[-1].best_epoch
        if _epoch_of(folder / BEST) == best:
            copy_file(folder / BEST, self.workdir / BEST)
        elif best == len(self.history):
            self._save_best()

    @property
    def latest(self) -> Path | None:
        """The state file; on rank 0, once this run has written one (a resumed run may start without)."""
        path = self.workdir / LATEST
        return path if self.rank == 0 and path.is_file() else None

    @property
    def best(self) -> Path | None:
        """The best epoch's weights; on rank 0, if the file here is that epoch's."""
        path = self.workdir / BEST
        wanted = self.history[-1].best_epoch if self.history else None
        return path if self.rank == 0 and wanted and _epoch_of(path) == wanted else None


@dataclass(frozen=True)
class Accuracy:
    """The two numbers that a goal speaks about."""

    clean_accuracy: float
    robust_accuracy: float


def _epoch_of(weights: Path) -> int | None:
    """The epoch in a weights file's header; None for a missing or damaged file."""
    try:
        epoch: int | None = read_metadata(weights).get("epoch")
    except CheckpointError:
        return None
    return epoch
