"""Looks at confirm sets, counted where the model lives: `models/NAME/looks/NNNNNN.json`, whatever study they are of.

A look is one set of candidates beside one champion, under one evaluation, compared by one standard. Whoever looks the
same way again, after a kill or because a dry run came first, has the look of before: nothing new is learned from it.

Every look may spend a part of one error budget. With challengers that are all no better than their champions, the
chance that any of them is ever called better is at most the sum of what the looks spend, whatever they have to do with
each other. Look j spends BUDGET / (j (j + 1)): these add up to BUDGET, and after j looks BUDGET / (j + 1) is left. What
a look spent on a champion that it did replace is handed to the next one: either that was no error, or the history has
its error already. This is Online Fallback of Tian and Ramdas, Online control of the familywise error rate (Stat.
Methods Med. Res. 30, 2021); it asks nothing of how the tests depend on each other.

What cannot be counted: candidates made by somebody who has seen earlier numbers of the confirm sets. And which champion
a look meets is a consequence of earlier ones on the same images; it was favoured by them, and is the harder to beat.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from typing import Any

from infra import storage
from infra.errors import Conflict, ServiceError
from study.models.head import Generation, history, model_prefix
from study.models.manifest import Look

BUDGET = 0.05  # of all looks of a model name together


def share(number: int) -> float:
    """What look `number` (1 is the first) may spend by itself."""
    return BUDGET / (number * (number + 1))


def level_of(number: int, *, before: float | None) -> float:
    """What it may spend; `before`: the level of the look before it, if that one replaced the champion, else None."""
    return share(number) + (before or 0.0)


def claim_look(bucket: str, name: str, facts: Mapping[str, Any], *, hypotheses: int) -> Look:
    """The look that these facts (JSON values) are, counted before anything is seen of it; of before, if it was one.

    `hypotheses`: how many statements the look may turn out to have made, see `Look`.
    """
    key = hashlib.sha256(json.dumps([facts, hypotheses], sort_keys=True).encode()).hexdigest()
    found = read_looks(bucket, name)
    while True:
        for record in found:
            if record["key"] == key:
                return look_of(record)
        last = found[-1] if found else None
        number = 1 if last is None else int(last["number"]) + 1
        before = float(last["level"]) if last and _replaced(history(bucket, name), int(last["number"])) else None
        look = Look(number=number, level=level_of(number, before=before), hypotheses=hypotheses)
        record = {**look.model_dump(mode="json"), "key": key, "facts": dict(facts), "when_ms": int(time.time() * 1000)}
        try:
            storage.put_json(_uri(bucket, name, number), record, if_absent=True)
            return look
        except Conflict:  # another promotion looked at the same time, perhaps the same way
            found = [*found, _read(_uri(bucket, name, number))]


def read_looks(bucket: str, name: str) -> list[dict[str, Any]]:
    """Every look so far, the first one first: `{number, level, hypotheses, key, facts, when_ms}`."""
    base = f"{model_prefix(bucket, name)}/looks/"
    return [_read(uri) for uri in sorted(stored.uri for stored in storage.list_objects(base))]


def look_of(record: Mapping[str, Any]) -> Look:
    """A stored look's number, level and hypotheses."""
    return Look(number=record["number"], level=record["level"], hypotheses=record["hypotheses"])


def _uri(bucket: str, name: str, number: int) -> str:
    return f"{model_prefix(bucket, name)}/looks/{number:06d}.json"


def _read(uri: str) -> dict[str, Any]:
    found = storage.get_json(uri)
    if found is None:
        raise ServiceError(f"{uri}: the record of a look is missing")
    return dict(found[0])


def _replaced(moves: list[Generation], number: int) -> bool:
    """Did that look, by its evidence alone, replace a champion?"""
    return any(
        move.action == "promotion" and move.facts.get("look") == number and move.facts.get("evidence") for move in moves
    )
