"""What an evaluation would compute, before anything is loaded or started."""

from __future__ import annotations

from typing import Any

from study.evaluation_plan import units
from trainers.data import dataset_entry
from trainers.suite import Suite
from trainers.units import eps_label

__all__ = ["outlook"]


def outlook(suite: Suite) -> list[dict[str, Any]]:
    """One row a dataset and attack, as JSON values; `passes`: of the encoder, forward and backward, at most."""
    rows = []
    for name in suite.datasets:
        num_classes = dataset_entry(name, "datasets").num_classes
        for entry in suite.attacks:
            planned = units(name, entry)
            images = sum(unit.images for unit in planned)
            forward, backward = entry.attack.passes(num_classes, norm=entry.norm)
            times = images * len(entry.eps)
            rows.append(
                {
                    "dataset": name,
                    "attack": entry.label,
                    "eps": [eps_label(eps) for eps in entry.eps],
                    "images": images,
                    "units": len(planned),
                    "passes": {"forward": images + times * forward, "backward": times * backward},
                }
            )
    return rows
