"""What the published recipes have in common; each stands with its method (`Objective.presets`). Imports no torch."""

from __future__ import annotations

# ImageNet, 1,281,167 images; 1000 warm-up updates; SGD with momentum 0.9 and no weight decay: common to the family.
SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 0.0}
PGD2 = {"name": "pgd", "norm": "linf", "eps": "1/255", "step_size": {"of_eps": 1}, "steps": 2, "momentum": 0.0}
FAMILY = {"epochs": 10, "batch_size": 256, "precision": "fp16", "warmup": {"steps": 1000}}
