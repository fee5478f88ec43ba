"""One fine-tuning run in memory: model, optimizer, data and history, advanced epoch by epoch by `loop.train`."""

from __future__ import annotations

import contextlib
import math
import operator
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from trainers import distributed
from trainers.arithmetic import exact_math
from trainers.data import ImageSet, load_dataset
from trainers.data.prefetch import prefetched
from trainers.draws import noise
from trainers.evaluation.measure import evaluate
from trainers.evaluation.verdicts import SetResult, count
from trainers.files import write_whole
from trainers.life import Left, Stage, asked
from trainers.model.build import tokenizer_for
from trainers.model.pretrained import load_clip
from trainers.model.robust import RobustCLIP, class_embeddings
from trainers.model.weights import CheckpointError, hash_weights, read_metadata, save_weights
from trainers.objectives import Batch, Context, Objective
from trainers.schema.records import At, EpochRecord
from trainers.teacher.cache import SharedFiles
from trainers.teacher.teacher import teacher_embeddings
from trainers.training.compiled import compile_encoder
from trainers.training.standing import Usage, standing
from trainers.training.state import State, Within, restore, save_state
from trainers.training.trainable import select_trainable
from trainers.training.update import Updater
from trainers.trial_config import TrialConfig

LATEST, BEST = "latest.safetensors", "best.safetensors"

Observe = Callable[[int, dict[str, float]], None]
"""Called after every update, on every rank, with its number (from 1) and loss, parts and gradient norm."""


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

    def __init__(
        self,
        config: TrialConfig,
        workdir: Path,
        device: torch.device,
        state: State | None,
        *,
        shared: SharedFiles | None = None,
        patiently: Callable[[Callable[[], Any]], Any] = operator.call,
        halfway: Callable[[Path, At], None] = lambda path, at: None,
        observe: Observe | None = None,
    ) -> None:
        self.config, self.workdir, self.device, self.observe = config, workdir, device, observe
        self.patiently, self.halfway, self.kept = patiently, halfway, time.monotonic()
        self.rank, self.world_size = distributed.rank(), distributed.world_size()
        self.train_set = load_dataset(config.data.train, "data.train")
        dev = {name: load_dataset(name, f"data.dev.{i}") for i, name in enumerate(config.evaluate.datasets)}
        self.clip = load_clip(config.model).to(device)
        tokenizer = tokenizer_for(self.clip)
        self.dev = {
            name: DevSet(images, class_embeddings(self.clip, images.prompts(), tokenizer))
            for name, images in dev.items()
        }
        self.classes = class_embeddings(self.clip, self.train_set.prompts(), tokenizer)
        self.model = RobustCLIP(self.clip)
        self.inputs = {"weights": hash_weights(self.model.visual), "train": self.train_set.content_hash}
        self.inputs |= {f"dev.{place}": images.content_hash for place, images in enumerate(dev.values())}
        self.method: Objective = config.method
        denied = self.method.complement_template
        denials = [[denied.format(name)] for name in self.train_set.classes] if denied else None
        self.complements = class_embeddings(self.clip, denials, tokenizer) if denials else None
        self.clean_teacher = self._clean_teacher(shared) if self.method.needs_clean_embeddings else None
        self.teacher = self.model.frozen_copy() if self.method.needs_teacher else None
        self.samples = min(config.train.samples_per_epoch or len(self.train_set), len(self.train_set))
        steps_per_epoch = math.ceil(self.samples / config.train.batch_size)
        parameters = select_trainable(self.model, config.train.trainable)
        self.updater = Updater(config.train, parameters, steps_per_epoch * config.train.epochs, device)
        self.history: list[EpochRecord] = []
        self.within: Within | None = None  # of an epoch that a state was kept in
        self.usage = Usage(device)
        if state is not None:
            restore(state, self.model, self.updater)
            self.history = list(state.history)
            self.within = state.within
        self.model.precision = config.train.precision
        if self.teacher is not None:  # beside the student in the loss, where different rounding would be a difference
            self.teacher.precision = config.train.precision
        if config.train.activation_checkpointing:
            self.model.use_activation_checkpointing()
        if config.train.compile:
            self._compile()

    def _compile(self) -> None:
        """For the usual forward on this rank: the larger part, where accumulation cuts a batch into unequal ones."""
        train, usual = self.config.train, self._order(0)[: self.config.train.batch_size]
        own = max(1, len(usual[self.rank :: self.world_size]))
        images = self._images(self.train_set.images[usual[: -(-own // min(train.accumulation, own))]])
        with exact_math(tf32=train.precision == "tf32"):
            compile_encoder(self.model, images)

    def _order(self, epoch: int) -> Tensor:
        return epoch_order(len(self.train_set), self.config.train.samples_per_epoch, seed=self.config.seed, epoch=epoch)

    def _clean_teacher(self, shared: SharedFiles | None) -> Callable[[Tensor, Tensor], Tensor]:
        """(dataset positions, images) -> the frozen model's raw embeddings, fp32 [B, D]: looked up, or computed."""
        if self.config.train.teacher_cache:
            kept = teacher_embeddings(self.model, self.train_set, device=self.device, shared=shared)
            return lambda index, _: kept[index].to(self.device)
        teacher = self.model.frozen_copy()

        def compute(_: Tensor, images: Tensor) -> Tensor:
            with torch.no_grad(), exact_math():
                return teacher.embed(images)

        return compute

    def _images(self, pixels: Tensor) -> Tensor:
        return pixels.to(self.device).float() / 255

    def _batch(self, index: Tensor, pixels: Tensor) -> Batch:
        images = self._images(pixels)
        return Batch(
            images=images,
            labels=self.train_set.labels[index].to(self.device, torch.int64),
            index=index.to(self.device),
            teacher_embeddings=None if self.clean_teacher is None else self.clean_teacher(index, images),
        )

    def _share(self, index: Tensor) -> tuple[float, tuple[Tensor, ...]]:
        """This rank's part of the global batch `index`: the weight of its loss, and its indices, a forward each."""
        own = index[self.rank :: self.world_size]
        # A rank without a share of a short last batch computes a stranger's loss, times 0, to stay in step.
        weight, own = (1.0, own) if len(own) else (0.0, index[:1])
        return weight, own.tensor_split(min(self.config.train.accumulation, len(own)))

    def _update(
        self, weight: float, parts: tuple[Tensor, ...], pixels: Iterator[Tensor], context: Context
    ) -> dict[str, float]:
        """One optimizer step; returns the global batch's mean loss and parts over all ranks."""
        self.updater.begin()
        for part in parts:
            batch = self._batch(part, next(pixels))
            losses = self.method.loss(self.model, batch, self.config.attack, context=context)
            self.updater.add(losses, weight)
        values = self.updater.finish()
        if self.observe is not None:
            self.observe(self.updater.step, dict(values))
        return values

    def epoch(self) -> None:
        """One epoch of updates, its evaluation, its files. `Left` where the run is to leave, with a state kept."""
        if distributed.any_rank(asked()):
            raise Left  # the newest state is of this very place
        train, epoch, began = self.config.train, len(self.history), time.monotonic()
        order, within = self._order(epoch), self.within or Within()
        before, stage = within.seconds, Stage("training", len(order))
        batches = order.split(train.batch_size)
        stage.done = sum(len(index) for index in batches[: within.updates])
        todo = [(index, *self._share(index)) for index in batches[within.updates :]]
        reading = prefetched(self.train_set.images, (part for _, _, parts in todo for part in parts), self.device)
        with contextlib.closing(reading) as pixels, exact_math(tf32=train.precision == "tf32"):
            for index, weight, parts in todo:
                within.lr = self.updater.lr
                context = Context(self.classes, self.config.seed, epoch, len(index), self.teacher, self.complements)
                within.add(self._update(weight, parts, pixels, context), len(index))
                within.seconds = before + time.monotonic() - began
                stage.more(len(index))
                self._between(within)
        means = {name: value / len(order) for name, value in within.sums.items()}
        began = time.monotonic()
        self._evaluate(within)
        self.within = None
        eval_seconds = time.monotonic() - began
        record = EpochRecord(
            epoch=epoch + 1,
            timestamp_ms=int(time.time() * 1000),
            steps=self.updater.step,
            train_loss=means.pop("loss"),
            grad_norm=within.norm_sum / max(1, within.norms),
            parts=means,
            lr=within.lr,
            skipped_updates=self.updater.skipped,
            notes=() if self.model.compile_note is None else (self.model.compile_note,),
            **standing(epoch + 1, within.measured, self.history[-1] if self.history else None, self.config.goal),
            train_seconds=within.seconds,
            eval_seconds=eval_seconds,
            images_per_second=len(order) / within.seconds,
            system=self.usage.take(),
        )
        self.history.append(record)
        self.patiently(self._save)  # the disk may be full for a while

    @contextlib.contextmanager
    def _shipped(self) -> Iterator[None]:
        """The model as it is measured and kept: averaged weights, a prompt folded in, eager, nothing checkpointed."""
        model, parameters = self.model, self.updater.parameters
        compiled, prompt, checkpointing = model.__dict__.pop("compiled", None), model.prompt, model.checkpointing
        changed = bool(self.updater.averages) or prompt is not None
        before = {name: value.clone() for name, value in model.state_dict().items()} if changed else {}
        try:
            if checkpointing:
                model.use_activation_checkpointing(False)
            if changed:
                with torch.no_grad():
                    for parameter, average in zip(parameters, self.updater.averages, strict=False):
                        parameter.copy_(average)
                    plain = model.plain_visual()
                    model.prompt = None
                    model.visual.load_state_dict(plain)
            yield
        finally:
            if changed:
                model.prompt = prompt
                model.load_state_dict(before)
            if checkpointing:
                model.use_activation_checkpointing()
            if compiled is not None:
                model.__dict__["compiled"] = compiled

    def _evaluate(self, within: Within) -> None:
        """Counts on the dev sets that `within` has none of yet."""
        (entry,), sizes = self.config.evaluate.attacks, [len(dev.images) for dev in self.dev.values()]
        numbers = [len(entry.eps) * min(size, entry.samples or size) for size in sizes]
        stage = Stage("evaluation", sum(numbers))
        stage.done = sum(numbers[: len(within.measured)])
        for name in list(self.dev)[len(within.measured) :]:
            with self._shipped():
                result = self._measure(name, stage)
            if result is None:
                self._keep_within(within)
                raise Left
            within.measured.append(result)
            if len(within.measured) < len(self.dev):  # after the last one the epoch's own state follows
                self._between(within)

    def _measure(self, name: str, stage: Stage) -> SetResult | None:
        """Counts over all ranks on one dev set; None where one of them was asked to leave."""
        dev, rank, ranks = self.dev[name], self.rank, self.world_size

        def looked(images: int) -> None:
            stage.more(images * ranks)
            if asked():
                raise Left

        found = None
        with contextlib.suppress(Left):
            found = evaluate(
                self.model, dev.images, dev.classes, self.config.evaluate, rank=rank, world_size=ranks, looked=looked
            )
        left = distributed.any_rank(found is None)
        return None if left or found is None else count(found)

    def _between(self, within: Within) -> None:
        """Between two steps of an epoch: a state now and then, and when the run is to leave, which it then does."""
        leaves, minutes = distributed.any_rank(asked()), self.config.train.checkpoint_minutes
        if leaves or (minutes is not None and time.monotonic() - self.kept >= 60 * minutes):
            self._keep_within(within)
        if leaves:
            raise Left

    def _keep_within(self, within: Within) -> None:
        """On rank 0: the state inside an epoch. The other ranks wait for it in their next update."""
        if self.rank:
            return
        path = self.workdir / LATEST
        history, config = tuple(self.history), self.config
        self.patiently(
            lambda: save_state(path, self.model, self.updater, config=config, history=history, within=within)
        )
        best = history[-1].best_epoch if history else 0
        self.halfway(path, At(len(history), best, within.steps))
        self.kept = time.monotonic()

    def _save(self) -> None:
        """On rank 0: the state, then the best weights; in this order a crash between the two can be made good."""
        self.kept = time.monotonic()
        if self.rank == 0:
            path, history = self.workdir / LATEST, tuple(self.history)
            save_state(path, self.model, self.updater, config=self.config, history=history)
            if self.history[-1].best_epoch == len(self.history):
                self._save_best()

    def _save_best(self) -> None:
        config, record = self.config.model_dump(mode="json"), self.history[-1]
        with self._shipped():
            save_weights(self.workdir / BEST, self.clip, config=config, record=record)

    def recover_best(self, folder: Path) -> None:
        """After a resume, on rank 0: the best weights from `folder`, or from the state where it is itself the best."""
        if self.rank or not self.history or self.best is not None:
            return
        best = self.history[-1].best_epoch
        if _epoch_of(folder / BEST) == best:
            self.workdir.mkdir(parents=True, exist_ok=True)
            write_whole(self.workdir / BEST, (folder / BEST).read_bytes())
        elif best == len(self.history) and self.within is None:
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


def _epoch_of(weights: Path) -> int | None:
    """The epoch in a weights file's header; None for a missing or damaged file."""
    try:
        epoch: int | None = read_metadata(weights).get("epoch")
    except CheckpointError:
        return None
    return epoch
