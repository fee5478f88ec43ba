"""What can go wrong, as the command line sees it.

ValueError
└── UserError              exit 2: the input is wrong; nothing was started, nothing is lost (the one of infra)
    └── StudyFileError     one or more problems of a study file, each with line, path, value and rule
RuntimeError
└── StudyFailed            exit 1: the study could not be finished
    └── LeaseLost          another driver owns the study now
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from infra.errors import ServiceError
from infra.errors import UserError as UserError
from trainers.errors import UserError as TrainersUserError


@dataclass(frozen=True)
class Problem:
    """One mistake in a study file."""

    line: int
    path: str
    value: str
    rule: str

    def __str__(self) -> str:
        shown = f" = {self.value}" if self.value else ""
        return f"line {self.line}: {self.path}{shown}: {self.rule}"


class StudyFileError(UserError):
    """Every problem of a study file at once."""

    def __init__(self, source: Path | str, problems: list[Problem]) -> None:
        self.source, self.problems = str(source), sorted(problems, key=lambda problem: (problem.line, problem.path))
        super().__init__("\n".join(f"{self.source}: {problem}" for problem in self.problems))

    def __reduce__(self) -> tuple[type[StudyFileError], tuple[str, list[Problem]]]:
        return StudyFileError, (self.source, self.problems)


class StudyFailed(RuntimeError):
    """The study ended without what was asked of it."""


class LeaseLost(StudyFailed):
    """Another driver has taken over the study; this one stops without writing anything more."""


USER_ERRORS: tuple[type[Exception], ...] = (UserError, TrainersUserError)
SERVICE_ERRORS: tuple[type[Exception], ...] = (ServiceError, StudyFailed)
