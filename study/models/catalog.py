"""The promoted models as S3 has them, which is the truth: names, versions, and what a person's NAME@... means."""

from __future__ import annotations

import re
from collections.abc import Mapping

from infra import storage
from study.errors import UserError
from study.models.head import Head, read_head, read_manifest
from study.models.manifest import Manifest
from trainers.errors import nearest

ALIASES = ("champion", "previous")
REFERENCE = re.compile(r"^(?:models:/)?(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:[@/](?P<which>[A-Za-z0-9]+))?$")


def model_names(bucket: str) -> dict[str, list[int]]:
    """Every model name with its complete versions, by number; names that have only unfinished ones are there, too."""
    base = f"s3://{bucket}/models/"
    found: dict[str, list[int]] = {}
    for stored in storage.list_objects(base):
        name, *rest = stored.uri.removeprefix(base).split("/")
        if rest:
            numbers = found.setdefault(name, [])
            if len(rest) == 2 and rest[0].isdigit() and rest[1] == "manifest.json":
                numbers.append(int(rest[0]))
    return {name: sorted(numbers) for name, numbers in sorted(found.items())}


def read_version(bucket: str, reference: str) -> Manifest:
    """What `NAME`, `NAME@champion`, `NAME@previous` or `NAME@3` means; `UserError` with the nearest that there is."""
    match = REFERENCE.match(reference)
    if match is None:
        raise UserError(f"{reference!r}: expected NAME, NAME@champion, NAME@previous or NAME@NUMBER")
    name, which = match["name"], match["which"] or "champion"
    known = model_names(bucket)
    number = _number(bucket, known_name(name, known), which, known[name])
    return read_manifest(bucket, name, number)


def known_name(name: str, known: Mapping[str, list[int]]) -> str:
    """`name`, if it is one of `known`; else `UserError` with the nearest."""
    if name not in known:
        close = nearest(name, known, count=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"no model {name!r}; {hint}known: {', '.join(known) or 'none yet'}")
    return name


def _number(bucket: str, name: str, which: str, numbers: list[int]) -> int:
    shown = ", ".join(map(str, numbers)) or "none that is complete"
    if which.isdigit():
        if int(which) not in numbers:
            raise UserError(f"model {name!r} has no version {int(which)}; versions: {shown}")
        return int(which)
    if which not in ALIASES:
        close = nearest(which, ALIASES, count=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UserError(f"{name}@{which}: {hint}known: champion, previous, or a version: {shown}")
    head: Head = read_head(bucket, name)[0]
    found = head.champion if which == "champion" else head.previous
    if found is None:
        raise UserError(f"model {name!r} has no {which} yet; versions: {shown}")
    return found
