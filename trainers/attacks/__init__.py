"""Attacks as pure functions: for training (ATTACKS), for evaluation (EVAL_ATTACKS), and the noise they start from."""

from __future__ import annotations

from trainers.attacks.case import Case, LogitsFn, Outcome
from trainers.attacks.geometry import Norm, ball
from trainers.attacks.projected import Attack, LossFn, pgd, restarted
from trainers.attacks.run import run_attack
from trainers.attacks.verdict import Worst, predict
from trainers.schema.attacks import EVAL_ATTACKS
from trainers.schema.training import ATTACKS

__all__ = [
    "ATTACKS",
    "EVAL_ATTACKS",
    "Attack",
    "Case",
    "LogitsFn",
    "LossFn",
    "Norm",
    "Outcome",
    "Worst",
    "ball",
    "pgd",
    "predict",
    "restarted",
    "run_attack",
]
