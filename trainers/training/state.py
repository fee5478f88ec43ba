"""Files of a run: `state` to resume from, `weights` to ship. Safetensors with a JSON header, never pickle."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from trainers.evaluation.verdicts import SetResult
from trainers.model.robust import RobustCLIP
from trainers.model.weights import FORMATS, CheckpointError, load_tensors, save_tensors
from trainers.schema.records import EpochRecord
from trainers.training.update import Updater
from trainers.trial_config import TrialConfig


@dataclass
class Within:
    """How far an epoch is that has not ended: finished updates, what its record sums over them, and their seconds; then
    the counts on the dev sets that were measured."""

    updates: int = 0
    sums: dict[str, float] = field(default_factory=dict)  # of loss and parts, each times the images of its batch
    norm_sum: float = 0.0  # of the gradients of those updates that did not overflow (fp16)
    norms: int = 0
    lr: float = 0.0  # of the last update
    seconds: float = 0.0
    measured: list[SetResult] = field(default_factory=list)

    @property
    def steps(self) -> int:
        """Finished updates and dev sets."""
        return self.updates + len(self.measured)

    def add(self, values: dict[str, float], images: int) -> None:
        """An update on so many images: its loss and parts, and the norm of its gradient as `grad_norm`."""
        norm = values.pop("grad_norm")
        if math.isfinite(norm):
            self.norm_sum, self.norms = self.norm_sum + norm, self.norms + 1
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * images
        self.updates += 1


@dataclass(frozen=True)
class State:
    """All that continuing bit for bit needs, beside the configuration's own seed: no other random state is used."""

    config: TrialConfig
    history: tuple[EpochRecord, ...]
    model: dict[str, Tensor]
    update: dict[str, Tensor]
    numbers: dict[str, Any]
    within: Within | None = None

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)


def save_state(
    path: Path,
    model: RobustCLIP,
    updater: Updater,
    *,
    config: TrialConfig,
    history: tuple[EpochRecord, ...],
    within: Within | None = None,
) -> Path:
    """Write the state after the epochs of `history`, or `within` the next one: encoder, optimizer, averages, and the
    rest as JSON in the header."""
    tensors = {f"model/visual.{name}": value for name, value in model.visual.state_dict().items()}
    if model.prompt is not None:
        tensors["model/prompt"] = model.prompt
    metadata = {
        "kind": "state",
        "format": FORMATS["state"],
        "epoch": len(history),
        "config": config.model_dump(mode="json"),
        "history": [record.model_dump(mode="json") for record in history],
        "within": within and asdict(within),
        "numbers": updater.numbers(),
        "random": {"scheme": "counter", "seed": config.seed},
    }
    return save_tensors(
        path, tensors | {f"update/{name}": value for name, value in updater.tensors().items()}, metadata
    )


def load_state(path: Path) -> State:
    """The state in `path`. Raises `CheckpointError` if it is missing, damaged, or no state file."""
    tensors, metadata = load_tensors(path, "state")
    try:
        config = TrialConfig.model_validate(metadata["config"])
        history = tuple(EpochRecord.model_validate(record) for record in metadata["history"])
        numbers, within = dict(metadata["numbers"]), metadata["within"]
        within = None if within is None else TypeAdapter(Within).validate_python(within)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: written by another version ({error})") from error

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    return State(config, history, under("model/"), under("update/"), numbers, within)


def restore(state: State, model: RobustCLIP, updater: Updater) -> None:
    """Put a loaded state into a model and an updater of the same configuration."""
    missing, unexpected = model.load_state_dict(state.model, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    updater.load(state.update, state.numbers)
