"""What promotions claim on record, derived again: candidates, accuracies, gates, and what follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from study.audit.audit import audit
from study.audit.findings import Audit, Finding
from study.store.typed import Stored


def audited(stored: Stored) -> Audit:
    """A study with its promotions."""
    return audit(stored, (promotions,))


def promotions(stored: Stored, tally: Counter[str]) -> Iterator[Finding]:
    """Every promotion on record."""
    yield from ()
