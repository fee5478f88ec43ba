"""A stopping rule: at half time, whoever is the worst of all stops."""

from __future__ import annotations

from study.spec.config import SchedulerConfig, StoppingRule


def worst_stops(settings: SchedulerConfig, own: float, others: list[float]) -> tuple[str, str]:
    worst = len(others) >= settings.min_trials and own < min(others)
    return ("stop" if worst else "continue"), f"{own:.4f} among {len(others)} others"


TOY_STOPPING = StoppingRule(
    lambda settings, epochs: (epochs // 2,) if epochs > 1 else (), worst_stops, reads=("min_trials",)
)
