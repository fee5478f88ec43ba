"""Tables of names that installed packages can add to, without a change here.

A table has rows of ours and, after them, those that installed packages bring as entry points of its group. Names are
read from the packages' metadata; a row from outside is imported when it is first asked for.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

from trainers.errors import UserError

Row = TypeVar("Row")


@dataclass(frozen=True)
class Origin:
    """Whose a row is that an installed package brings; `sha256` of the file that it is written in."""

    group: str
    name: str
    distribution: str
    version: str
    sha256: str | None

    def __str__(self) -> str:
        return f"{self.group} {self.name!r} of {self.distribution} {self.version}"

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


@cache
def installed() -> Any:  # EntryPoints, or before Python 3.12 something that selects as they do
    """The entry points of all installed packages, read once a process."""
    return entry_points()


def imported(place: str) -> Any:
    """The object at `module:object`."""
    module, _, path = place.partition(":")
    found: Any = importlib.import_module(module)
    for name in path.split("."):
        found = getattr(found, name)
    return found


def origin_of(point: EntryPoint) -> Origin:
    """Read from the package's metadata and file; nothing of it is imported but the packages around its module."""
    about = point.dist.metadata if point.dist else None
    try:
        spec = importlib.util.find_spec(point.module)
        digest = hashlib.sha256(Path(str(spec and spec.origin)).read_bytes()).hexdigest()
    except (ImportError, OSError):
        digest = None
    name, version = (about["Name"], about["Version"]) if about else ("an unnamed package", "?")
    return Origin(point.group, point.name, name, version, digest)


def lacking(wanted: Sequence[Origin]) -> list[str]:
    """What this machine has not, or has otherwise, of what is wanted; nothing of it is imported."""
    found = []
    for origin in wanted:
        points = list(entry_points(group=origin.group, name=origin.name))
        here = origin_of(points[0]) if points else None
        if here is None:
            found.append(f"{origin} is not installed")
        elif here != origin:
            same = (here.distribution, here.version) == (origin.distribution, origin.version)
            found.append(f"{origin} is {'another file' if same else f'{here.distribution} {here.version}'} here")
    return found


class Table(Mapping[str, Row], Generic[Row]):
    """Rows of one kind by name. `rows`: ours; one may be written as entry points are, `module:object`.

    `wrong(name, row)` says what keeps an object from being a row of that name, or ''. Whatever is wrong with a row from
    outside is a `UserError` that names its package: one that takes a name of ours or of another package at the first
    look at all names, one that cannot be imported or is no row when it is asked for.
    """

    def __init__(
        self, kind: str, group: str, rows: Mapping[str, Row | str], wrong: Callable[[str, Any], str] = lambda *_: ""
    ) -> None:
        self.kind, self.group, self.rows, self._wrong = kind, group, dict(rows), wrong
        self._imported: dict[str, Row] = {}

    @cached_property
    def outside(self) -> dict[str, EntryPoint]:
        """What installed packages bring, by name."""
        found: dict[str, EntryPoint] = {}
        for point in sorted(installed().select(group=self.group), key=lambda point: point.name):
            if point.name in self.rows:
                raise UserError(f"{_shown(point)}: {point.name!r} is a {self.kind} of ours, which none can replace")
            if point.name in found:
                raise UserError(f"{_shown(point)}: {point.name!r} is there already: {_shown(found[point.name])}")
            found[point.name] = point
        return found

    def __getitem__(self, name: str) -> Row:
        if name in self.rows:
            row = self.rows[name]
            return cast(Row, imported(row)) if isinstance(row, str) else row
        if name not in self._imported:
            self._imported[name] = self._load(self.outside[name])
        return self._imported[name]

    def _load(self, point: EntryPoint) -> Row:
        try:
            row = point.load()
        except Exception as error:
            raise UserError(f"{_shown(point)}: cannot be imported: {type(error).__name__}: {error}") from error
        if wrong := self._wrong(point.name, row):
            raise UserError(f"{_shown(point)}: is no {self.kind}: {wrong}")
        return cast(Row, row)

    def __iter__(self) -> Iterator[str]:
        yield from (*self.rows, *self.outside)

    def __len__(self) -> int:
        return len(self.rows) + len(self.outside)

    def __contains__(self, name: object) -> bool:
        return name in self.outside or name in self.rows  # in this order: a name of ours that is taken shows here

    def origin(self, name: str) -> Origin | None:
        """Of a row from outside; None of ours."""
        return origin_of(self.outside[name]) if name in self.outside else None


def _shown(point: EntryPoint) -> str:
    about = point.dist.metadata if point.dist else None
    whose = f"{about['Name']} {about['Version']}" if about else "an unnamed package"
    return f"{whose}: entry point {point.name} = {point.value} of {point.group}"


def instance_rule(kind: type) -> Callable[[str, Any], str]:
    """For a `Table` of objects: what keeps one from being a row."""
    return lambda name, row: "" if isinstance(row, kind) else f"must be a {kind.__module__}.{kind.__name__}"
