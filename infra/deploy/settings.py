"""Settings of a container, which come from its environment and from nowhere else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from infra.errors import UserError


def required(environ: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    """The values of `names`; `UserError` with every name that is missing or empty."""
    missing = [name for name in names if not environ.get(name)]
    if missing:
        raise UserError(f"environment: not set: {', '.join(missing)}")
    return {name: environ[name] for name in names}
