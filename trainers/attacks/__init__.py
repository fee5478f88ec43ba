"""Attacks as pure functions: PGD for training (ATTACKS), and the noise that attacks start from."""

from __future__ import annotations

from trainers.attacks.counter import noise
from trainers.attacks.geometry import Norm, ball, sign_step
from trainers.attacks.projected import ATTACKS, Attack, LossFn, pgd, pgd_any, restarted
from trainers.attacks.verdict import PGDAny, predict
from trainers.config import AttackConfig

__all__ = [
    "ATTACKS",
    "Attack",
    "AttackConfig",
    "LossFn",
    "Norm",
    "PGDAny",
    "ball",
    "noise",
    "pgd",
    "pgd_any",
    "predict",
    "restarted",
    "sign_step",
]
