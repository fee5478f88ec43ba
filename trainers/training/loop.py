"""Fine-tune one model as one configuration says. No Ray, no MLflow, no S3: `report` is the only way out."""

from __future__ import annotations

import contextlib
import operator
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch

from trainers import distributed
from trainers.arithmetic import deterministic, exact_math, resolved_precision
from trainers.device import usable
from trainers.life import Asked, Left, Listener, listening
from trainers.model.weights import CheckpointError
from trainers.schema.records import At, Decision, Progress, TrainResult
from trainers.teacher.cache import SharedFiles
from trainers.training.run import LATEST, Observe, Run
from trainers.training.state import State, load_state
from trainers.trial_config import TrialConfig

UNSEEN = ("train.threads", "train.checkpoint_minutes")
Outcome = Literal["finished", "stopped", "paused"]


def train(
    config: TrialConfig,
    *,
    report: Callable[[Progress], Decision],
    workdir: Path,
    resume_from: Path | None = None,
    device: torch.device | str = "cpu",
    shared: SharedFiles | None = None,
    patiently: Callable[[Callable[[], Any]], Any] = operator.call,
    halfway: Callable[[Path, At], None] = lambda path, at: None,
    observe: Observe | None = None,
    listener: Listener | None = None,
    asked: Asked = lambda: False,
) -> TrainResult:
    """Train, evaluate and report once an epoch, on every rank; rank 0's decision holds for all.

    With a process group (any backend) each global batch is split over the ranks, gradients are summed, and the numbers
    are those of one process up to rounding. Rank 0 writes `latest.safetensors` (every epoch) and `best.safetensors`
    (whenever the goal says so) into `workdir` before it reports. `resume_from` is such a state file, or a folder with
    one: the last record is reported again (`resumed=True`) and its decision obeyed, then training goes on, bit for bit
    on the same hardware, threads and number of workers (on CUDA with `train.deterministic`; else attention may add
    in any order there). A finished run returns at once. `shared` is where the teacher's embeddings are kept beside the
    local disk; `patiently` does a step that writes files of the run; `observe` sees every update, `listener` signs of
    life from inside an epoch. `halfway` is handed, on rank 0, the state file of an epoch that takes longer than
    `train.checkpoint_minutes`; training goes on from it as well. Where `asked()` is true on any rank, the run leaves
    inside the epoch, before the next update or image under attack: `paused`, with a state for `halfway`.
    Raises `NonFinite`, `UserError` (and its `CheckpointError`, also when the state belongs to another configuration).
    """
    started = time.monotonic()
    folder = None if resume_from is None else resume_from if resume_from.is_dir() else resume_from.parent
    device = usable(torch.device(device))
    config = _resolved(config, device)
    state = None if resume_from is None else _resumable(config, resume_from)
    run: Run | None = None
    outcome: Outcome | None = None
    with (
        listening(listener, asked), _threads(config.train.threads), exact_math(),
        deterministic(config.train.deterministic),
    ):  # fmt: skip
        try:
            run = Run(
                config, workdir, device, state, shared=shared, patiently=patiently, halfway=halfway, observe=observe
            )
            if folder is not None:
                run.recover_best(folder)
            if run.history:
                outcome = _follow(run, report, resumed=True)
            while outcome is None:
                run.epoch()
                outcome = _follow(run, report, resumed=False)
        except Left:
            outcome = "paused"
    history = tuple(run.history) if run else state.history if state else ()
    best = history[history[-1].best_epoch - 1] if history else None
    return TrainResult(history, outcome, best, run.best if run else None, time.monotonic() - started)


def _resolved(config: TrialConfig, device: torch.device) -> TrialConfig:
    """With the precision that the devices of all ranks have: part of what the run is, in its files and their check."""
    precision = resolved_precision(config.train.precision, device)
    agreeing = distributed.all_reduce_sum(torch.tensor([int(precision == "bf16")]))
    if config.train.precision == "auto" and int(agreeing) < distributed.world_size():
        precision = "fp32"
    return config.model_copy(update={"train": config.train.model_copy(update={"precision": precision})})


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
            precision=run.config.train.precision,
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
        told = ", ".join(f"{name} (there {theirs.get(name)}, here {ours.get(name)})" for name in names)
        raise CheckpointError(f"{path}: the state belongs to another configuration; different: {told}")
    return state


def _identity(config: TrialConfig) -> dict[str, object]:
    """Every field by its dotted path, but not how many threads compute, and how often a state is kept."""

    def flat(value: object, path: str) -> Iterator[tuple[str, object]]:
        if isinstance(value, dict) and value:
            for key, inner in value.items():
                yield from flat(inner, f"{path}.{key}" if path else str(key))
        else:
            yield path, value

    return {path: value for path, value in flat(config.model_dump(mode="json"), "") if path not in UNSEEN}


@contextlib.contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(number or before)
        yield
    finally:
        torch.set_num_threads(before)
