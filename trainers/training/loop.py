"""Fine-tune one model as one configuration says. No Ray, no MLflow, no S3: `report` is the only way out."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import torch

from trainers import distributed
from trainers.model.robust import exact_math
from trainers.model.weights import CheckpointError
from trainers.schema.records import Decision, Progress, TrainResult
from trainers.teacher.cache import SharedFiles
from trainers.training.run import LATEST, Observe, Run
from trainers.training.state import State, load_state
from trainers.trial_config import TrialConfig

Outcome = Literal["finished", "stopped", "paused"]


def train(
    config: TrialConfig,
    *,
    report: Callable[[Progress], Decision],
    workdir: Path,
    resume_from: Path | None = None,
    device: torch.device | str = "cpu",
    shared: SharedFiles | None = None,
    observe: Observe | None = None,
) -> TrainResult:
    """Train, evaluate and report once an epoch, on every rank; rank 0's decision holds for all.

    With a process group (any backend) each global batch is split over the ranks, gradients are summed, and the numbers
    are those of one process up to rounding. Rank 0 writes `latest.safetensors` (every epoch) and `best.safetensors`
    (whenever the goal says so) into `workdir` before it reports. `resume_from` is such a state file, or a folder with
    one: the last record is reported again (`resumed=True`) and its decision obeyed, then training goes on, bit for bit
    on the same hardware, threads and number of workers (on CUDA as far as its kernels are deterministic: attention and
    resizing there may add in any order). A finished run returns at once. `shared` is where the teacher's embeddings are
    kept beside the local disk; `observe` sees every update.
    Raises `NonFinite`, `UserError` (and its `CheckpointError`, also when the state belongs to another configuration).
    """
    started = time.monotonic()
    folder = None if resume_from is None else resume_from if resume_from.is_dir() else resume_from.parent
    state = None if resume_from is None else _resumable(config, resume_from)
    with _threads(config.train.threads), exact_math():
        run = Run(config, workdir, torch.device(device), state, shared=shared, observe=observe)
        if folder is not None:
            run.recover_best(folder)
        outcome = _follow(run, report, resumed=True) if run.history else None
        while outcome is None:
            run.epoch()
            outcome = _follow(run, report, resumed=False)
    best = run.history[run.history[-1].best_epoch - 1]
    return TrainResult(tuple(run.history), outcome, best, run.best, time.monotonic() - started)


def _follow(run: Run, report: Callable[[Progress], Decision], *, resumed: bool) -> Outcome | None:
    """Report the last record on every rank, and do on all what rank 0 was told; None is to go on."""
    record = run.history[-1]
    decision = report(
        Progress(
            record=record,
            history=tuple(run.history),
            latest=run.latest,
            best=run.best if record.best_epoch == record.epoch else None,
            resumed=resumed,
            inputs=run.inputs,
        )
    )
    choices = list(Decision)
    decision = choices[distributed.broadcast_int(choices.index(Decision(decision)))]
    if record.epoch >= run.config.train.epochs:
        return "finished"
    outcomes: dict[Decision, Outcome] = {Decision.STOP: "stopped", Decision.PAUSE: "paused"}
    return outcomes.get(decision)


def _resumable(config: TrialConfig, resume_from: Path) -> State:
    """The state of this very configuration in a file or folder."""
    path = resume_from / LATEST if resume_from.is_dir() else resume_from
    state = load_state(path)
    ours, theirs = _identity(config), _identity(state.config)
    if ours != theirs:
        names = sorted(key for key in {*ours, *theirs} if ours.get(key) != theirs.get(key))
        raise CheckpointError(f"{path}: the state belongs to another configuration; different: {', '.join(names)}")
    return state


def _identity(config: TrialConfig) -> dict[str, object]:
    """Every field by its dotted path, but not how many threads compute."""

    def flat(value: object, path: str) -> Iterator[tuple[str, object]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from flat(inner, f"{path}.{key}" if path else str(key))
        else:
            yield path, value

    return {path: value for path, value in flat(config.model_dump(mode="json"), "") if path != "train.threads"}


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)
