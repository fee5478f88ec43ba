"""What is on record of a checkpoint's making, and what is not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from study.rows import TrialRow

__all__ = ["lacking", "uncommitted"]

WANTED = ("code", "packages", "python", "hostname", "inputs")


def lacking(trial: TrialRow) -> list[str]:
    """What no attempt that trained anything should leave out, in words; nothing if the record is complete."""
    made = [attempt for attempt in trial.attempts if attempt.provenance]
    if not made:
        return ["no attempt says where and with what it ran"]
    found = []
    for attempt in made:
        record = attempt.provenance or {}
        missing = [name for name in WANTED if not record.get(name)]
        code = record.get("code") or {}
        if "code" not in missing and not (code.get("revision") or code.get("version")):
            missing.append("code revision")
        if missing:
            found.append(f"attempt {attempt.token} lacks {', '.join(missing)}")
    for part in ("uri", "sha256"):
        if not (trial.best or {}).get(part):
            found.append(f"the checkpoint has no {part}")
    return found


def uncommitted(trial: TrialRow, promoting: Mapping[str, Any]) -> list[str]:
    """Where code that is in no commit took part, or where nobody knows."""
    records = [
        (f"attempt {attempt.token}", attempt.provenance or {}) for attempt in trial.attempts if attempt.provenance
    ]
    found = []
    for who, record in [*records, ("this promotion", promoting)]:
        code = record.get("code") or {}
        if code.get("revision") is None or code.get("dirty") is None:
            found.append(f"{who}: revision unknown")
        elif code["dirty"]:
            found.append(f"{who}: {str(code['revision'])[:8]} with changes")
    return found
