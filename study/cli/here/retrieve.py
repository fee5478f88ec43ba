"""Zero-shot retrieval on this machine: one model, one set of pictures with captions, one attack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from study.console import say
from study.errors import UserError
from study.evaluation.models import Gallery
from study.spec.suite import attack_at
from trainers.data.pairs import PAIRS
from trainers.data.stored import data_root
from trainers.device import task_device
from trainers.errors import lookup
from trainers.evaluation.retrieval import KS, retrieve
from trainers.schema.attacks import EVAL_ATTACKS


def retrieve_here(
    model: str, on: str, *, attack: str, eps: str, samples: int | None, seed: int, home: Path
) -> dict[str, Any]:
    """What was measured, as JSON values."""
    entry = lookup(PAIRS, on, path="--on")
    measured = None
    if eps.strip(", "):
        measured = attack_at(lookup(EVAL_ATTACKS, attack, path="--attack").model_validate({}), eps)
    try:
        pairs = entry.read(data_root())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        wanted = f"wanted below {data_root()} (AGFT_DATA): {entry.files}; source: {entry.source}"
        raise UserError(f"--on: {on}: {error.filename}: {reason}; {wanted}") from None
    subject = Gallery(home, say).subject(model)
    found = retrieve(
        subject.clip, pairs, measured, samples=samples, seed=seed, device=task_device(), say=say
    )  # fmt: skip
    return {
        "model": model, "label": subject.facts.label, "on": on, "seed": seed,
        "attack": None if measured is None else {**measured.model_dump(mode="json"), "label": measured.label},
        "recall": {name: recall.record() for name, recall in found.items()},
    }  # fmt: skip


def recall_table(found: dict[str, Any]) -> Table:
    """One row a radius, both directions."""
    first = next(iter(found["recall"].values()))
    attack = f", {found['attack']['label']}" if found["attack"] else ""
    title = f"{found['label']} on {found['on']}: {first['images']:,} pictures, {first['texts']:,} captions{attack}"
    table = Table(title=title, title_justify="left")
    table.add_column("eps")
    directions = {"picture to text": "image_to_text", "text to picture": "text_to_image"}
    for direction in directions:
        for k in KS:
            table.add_column(f"{direction} R@{k}", justify="right")
    for name, recall in found["recall"].items():
        table.add_row(name, *(f"{100 * share:.1f} %" for key in directions.values() for share in recall[key].values()))
    return table
