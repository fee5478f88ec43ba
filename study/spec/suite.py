"""Which suite: one of the table, or a file; every mistake of a file at once, before anything is imported or started."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from study.errors import StudyFileError, UserError
from study.spec.document import read_mapping, read_text
from study.spec.places import absolute
from study.spec.reader import problem_of, read_record
from trainers.data import DATASETS, PREFIXES, dataset_entry, not_ready
from trainers.errors import lookup
from trainers.model import bundled as tiny
from trainers.schema.attacks import EvalAttackParameters
from trainers.schema.suite import SUITES, AttackAt, Suite, problems

FILES = (".yaml", ".yml")
CHOICES = ("auto", "all", "none")  # of --sanity, beside the suite's sets
SANITY_CLASSES = 4  # with fewer, a check that needs APGD-T says little


def chosen_suite(named: str | None, models: Sequence[str]) -> Suite | None:
    """What --suite says, ready to be loaded; None if it says nothing and the models do not tell by their names."""
    if named is None and set(models) != {tiny.ARCH}:
        return None
    suite = load_suite(named or default_suite(models))
    check_ready(suite, suite.name)
    return suite


def default_suite(models: Sequence[str]) -> str:
    """For models of these names or architectures."""
    return "tiny" if all(each.partition(":")[0] == tiny.ARCH for each in models) else "zero-shot-15"


def load_suite(named: str) -> Suite:
    """The suite called so, or the one in the file; `UserError`, or `StudyFileError` with every problem of the file."""
    if named in SUITES:
        return SUITES[named][0]
    if not named.endswith(FILES):
        lookup(dict.fromkeys(SUITES), named, path="--suite (a name, or a file that ends in .yaml)")
    path = Path(named).expanduser()
    return parse_suite(read_text(path), source=named, base=path.parent)


def attack_at(parameters: EvalAttackParameters, eps: str, samples: int | None = None) -> AttackAt:
    """An attack at the radii that `--eps` lists, with commas between them."""
    radii = [part.strip() for part in eps.split(",") if part.strip()]
    try:
        return AttackAt.model_validate({"attack": parameters, "eps": radii, "samples": samples})
    except ValidationError as error:
        rule = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise UserError(f"--eps: {eps!r}: {rule}") from None


def check_ready(suite: Suite, source: str) -> None:
    """Refuse what cannot be loaded here; on another cluster, its workers say the same."""
    if not os.environ.get("RAY_ADDRESS") and (found := unready(suite)):
        raise UserError("\n".join(f"suite {source}: {problem}" for problem in found))


def unready(suite: Suite) -> list[str]:
    """What to do before its datasets can be loaded here, a line for all that are prepared by one command."""
    problems = {name: not_ready({f"datasets.{number}": name}) for number, name in enumerate(suite.datasets)}
    unprepared = [name for name, found in problems.items() if found and name in DATASETS]
    rest = [line for name, found in problems.items() if name not in unprepared for line in found]
    if not unprepared:
        return rest
    count = f"{len(unprepared)} of {len(suite.datasets)} datasets are"
    return [f"{count} not prepared; run: agft data prepare {' '.join(unprepared)} --download", *rest]


def capped(suite: Suite, samples: int | None) -> Suite:
    """The suite with at most so many images of each set under every attack."""
    if samples is None:
        return suite
    fewer = [
        entry.model_copy(update={"samples": samples if entry.samples is None else min(samples, entry.samples)})
        for entry in suite.attacks
    ]
    return suite.model_copy(update={"attacks": tuple(fewer)})


def checked_sets(asked: str, suite: Suite) -> tuple[str, ...]:
    """Sets that the sanity checks are made on: `none`, `all`, one by name, or `auto`, the first with four classes."""
    if asked == "all":
        return suite.datasets
    if asked == "auto":
        enough = (name for name in suite.datasets if dataset_entry(name, "datasets").num_classes >= SANITY_CLASSES)
        return tuple(itertools.islice(enough, 1))
    if asked == "none":
        return ()
    lookup({name: name for name in (*suite.datasets, *CHOICES)}, asked, path="--sanity")
    return (asked,)


def parse_suite(text: str, *, source: str, base: Path = Path()) -> Suite:
    """As `load_suite`, from text; `source`: the name that messages carry; `base`: where relative paths are found."""
    raw, lines, found = read_mapping(text, source=source, keys="name, datasets, attacks")
    raw = absolute(raw, base)
    suite, wrong = read_record(Suite, raw, lines)
    rules = problems(suite) if suite else _rules_of_what_is_legal(raw)
    found += [*wrong, *(problem_of(lines, rule) for rule in rules)]
    if found or suite is None:
        raise StudyFileError(source, list(dict.fromkeys(found)))
    return suite


def _rules_of_what_is_legal(raw: Mapping[str, Any]) -> list[str]:
    """What `problems` would say about the parts of a file that are well-formed, while others are not."""
    datasets, attacks = raw.get("datasets"), raw.get("attacks")
    names = [name for name in datasets if isinstance(name, str)] if isinstance(datasets, list) else []
    found = [f"datasets: {name!r} is there twice" for name in sorted({n for n in names if names.count(n) > 1})]
    for number, name in enumerate(datasets if isinstance(datasets, list) else []):
        if isinstance(name, str) and name not in DATASETS and not name.startswith(PREFIXES):
            try:
                lookup(DATASETS, name, path=f"datasets.{number}")
            except ValueError as error:
                found.append(str(error))
    known = tuple(dict.fromkeys(name for name in names if name in DATASETS)) or ("tiny-digits",)
    for number, entry in enumerate(attacks if isinstance(attacks, list) else []):
        try:
            alone = Suite(name="alone", datasets=known, attacks=(AttackAt.model_validate(entry),))
        except ValidationError:
            continue  # said already
        found += [rule.replace("attacks.0.", f"attacks.{number}.", 1) for rule in problems(alone)]
    return found
