"""Files of a run: `state` to resume from, `weights` to ship. Safetensors with a JSON header, never pickle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from trainers.model.robust import RobustCLIP
from trainers.model.weights import FORMATS, CheckpointError, load_tensors, save_tensors
from trainers.schema.records import EpochRecord
from trainers.training.update import Updater
from trainers.trial_config import TrialConfig


@dataclass(frozen=True)
class State:
    """All that continuing bit for bit needs, beside the configuration's own seed: no other random state is used."""

    config: TrialConfig
    history: tuple[EpochRecord, ...]
    model: dict[str, Tensor]
    update: dict[str, Tensor]
    numbers: dict[str, Any]

    @property
    def epoch(self) -> int:
        """Finished epochs."""
        return len(self.history)


def save_state(
    path: Path, model: RobustCLIP, updater: Updater, *, config: TrialConfig, history: tuple[EpochRecord, ...]
) -> Path:
    """Write the state after a finished epoch: encoder, optimizer, averages, and the rest as JSON in the header."""
    tensors = {f"model/visual.{name}": value for name, value in model.visual.state_dict().items()}
    if model.prompt is not None:
        tensors["model/prompt"] = model.prompt
    metadata = {
        "kind": "state",
        "format": FORMATS["state"],
        "epoch": len(history),
        "config": config.model_dump(mode="json"),
        "history": [record.model_dump(mode="json") for record in history],
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
        numbers = dict(metadata["numbers"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: written by another version ({error})") from error

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}

    return State(config, history, under("model/"), under("update/"), numbers)


def restore(state: State, model: RobustCLIP, updater: Updater) -> None:
    """Put a loaded state into a model and an updater of the same configuration."""
    missing, unexpected = model.load_state_dict(state.model, strict=False)
    assert not missing, missing
    assert not unexpected, unexpected
    updater.load(state.update, state.numbers)
