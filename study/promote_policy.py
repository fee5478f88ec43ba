"""A policy file: the keys of `promote.gates`, kept apart from studies by whoever answers for what ships."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ValidationError

from study.errors import Problem, StudyFileError
from study.lines import Keys, dotted, line_of, shown_value
from study.promote_config import GatesConfig, ImprovementGate, SanityGate
from study.studyfile import read_mapping, read_text
from trainers.errors import nearest

__all__ = ["load_policy"]

INNER: dict[str, type[BaseModel]] = {"improvement": ImprovementGate, "sanity": SanityGate}


def load_policy(path: Path) -> GatesConfig:
    """The gates in a file; `StudyFileError` with every problem, `UserError` when it cannot be read."""
    raw, lines, problems = read_mapping(read_text(path), source=str(path), keys=", ".join(GatesConfig.model_fields))
    try:
        found = GatesConfig.model_validate(raw)
    except ValidationError as error:
        found = None
        for detail in error.errors():
            keys: Keys = tuple(key for key in detail["loc"] if key != "[key]")
            rule, value = detail["msg"].removeprefix("Value error, "), shown_value(detail["input"])
            if detail["type"] == "extra_forbidden":
                owner = INNER.get(str(keys[0]), GatesConfig) if len(keys) > 1 else GatesConfig
                close = nearest(str(keys[-1]), owner.model_fields)
                hint = f"did you mean {close[0]!r}? " if close else ""
                rule = f"no such field; {hint}known: {', '.join(owner.model_fields)}"
            problems.append(Problem(line_of(lines, keys), dotted(keys), value, rule))
    if problems or found is None:
        raise StudyFileError(path, problems)
    return found
