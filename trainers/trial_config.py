"""Everything that defines one fine-tuning run, checked as a whole: one frozen record."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from trainers.data import DATASETS
from trainers.model.architectures import configurations, tower
from trainers.objectives import METHODS, MethodConfig
from trainers.schema.suite import Suite
from trainers.schema.training import ATTACKS, AttackConfig, DataConfig, Goal, ModelConfig, TrainConfig
from trainers.schema.units import Frozen
from trainers.table import Table

if TYPE_CHECKING:
    from trainers.objectives import Objective
    from trainers.schema.training import TrainConfig


def mismatches(arch: str, method: Objective, train: TrainConfig) -> list[tuple[str, str]]:
    """(path, rule) for what the architecture cannot do. One that is not known here is checked when it is built."""
    kind = tower(arch)
    if kind is None:
        return []
    vision, part = configurations()[arch].get("vision_cfg", {}), train.trainable.part
    found = {"vit": "a ViT", "resnet": "a ResNet", "other": "another kind of encoder"}[kind]
    problems = []
    if method.teacher_output == "tokens" and kind != "vit":
        problems.append(("method.name", f"needs the patch tokens of a ViT with a class token; {arch} has {found}"))
    if part == "visual_prompt" and kind != "vit":
        rule = f"visual_prompt ends up in a ViT's position embedding, so that weights ship as usual; {arch} has {found}"
        problems.append(("train.trainable.part", rule))
    elif part == "visual_prompt" and 2 * train.trainable.prompt_width > vision.get("image_size", 224):
        rule = f"the input of {arch} is {vision['image_size']} pixels wide; at most {vision['image_size'] // 2}"
        problems.append(("train.trainable.prompt_width", rule))
    blocks = {"vit": vision.get("layers", 12), "resnet": 4, "other": 0}[kind]
    if part in ("first_blocks", "last_blocks") and train.trainable.blocks > blocks:
        rule = f"{arch} has {blocks} blocks" if blocks else f"blocks: only in open_clip's ViTs and ResNets, not {arch}"
        problems.append(("train.trainable.blocks", rule))
    if kind == "resnet" and train.compile and train.activation_checkpointing:
        rule = "a ResNet is either compiled or recomputes its activations; switch one off"
        problems.append(("train.activation_checkpointing", rule))
    return problems


def outside_entries(config: TrialConfig) -> list[dict[str, Any]]:
    """Whose the entries are that a trial's workers use of installed packages, as JSON values."""
    used: list[tuple[Table[Any], str]] = [(METHODS, config.method.name), (ATTACKS, config.attack.name)]
    used += [(DATASETS, name) for name in (config.data.train, *config.evaluate.datasets)]
    origins = (table.origin(name) for table, name in used)
    return [origin.record() for origin in origins if origin is not None]


class TrialConfig(Frozen):
    """One fine-tuning run, complete: same config, same hardware, same numbers."""

    model: ModelConfig = Field(default=ModelConfig(), description="the CLIP to start from")
    method: MethodConfig = Field(description="objective")
    attack: AttackConfig = Field(default=AttackConfig(), description="training attack")
    data: DataConfig = Field(description="datasets")
    train: TrainConfig = Field(default=TrainConfig(), description="length and optimizer")
    evaluate: Suite = Field(description="fixed evaluation after every epoch, on the dev sets; of one attack")
    goal: Goal = Field(default=Goal(), description="what best means")
    seed: int = Field(default=0, ge=0, lt=2**31, description="seed of data order and attack starts")

    @model_validator(mode="after")
    def _one_attack(self) -> TrialConfig:
        if len(self.evaluate.attacks) > 1:
            labels = ", ".join(entry.label for entry in self.evaluate.attacks)
            raise ValueError(f"evaluate.attacks: a trial is measured under one attack, and there are {labels}")
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> TrialConfig:
        problems = mismatches(self.model.arch, self.method, self.train)
        if problems:
            raise ValueError("; ".join(f"{path}: {rule}" for path, rule in problems))
        return self
