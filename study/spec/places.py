"""Files and folders that a user's file names: made absolute once, from the folder that the file lies in.

Workers have working folders of their own, and a study goes on from another terminal or another day, so a relative path
means what it meant only while the file is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from trainers.data import FOLDER_PREFIX
from trainers.data.corrupted.entries import MADE
from trainers.schema.training import PLACES, is_weight_file

LOCAL = "local-dir:"
WEIGHTS = "model.pretrained"


def absolute(raw: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """The mapping of a study, suite or compare file with every path in it absolute."""
    found = dict(raw)

    def weights(value: Any) -> Any:
        return _each(value, lambda text: weights_at(text, base))

    def data(value: Any) -> Any:
        return _each(value, lambda text: data_at(text, base))

    if isinstance(model := raw.get("model"), Mapping) and "pretrained" in model:
        found["model"] = {**model, "pretrained": weights(model["pretrained"])}
    if isinstance(sets := raw.get("data"), Mapping):
        found["data"] = {role: data(names) for role, names in sets.items()}
    found |= {key: data(raw[key]) for key in ("datasets", "source") if key in raw}  # of a suite
    search = raw.get("search")
    entry = search.get(WEIGHTS) if isinstance(search, Mapping) else None
    if isinstance(search, Mapping) and isinstance(entry, Mapping) and "choices" in entry:
        found["search"] = {**search, WEIGHTS: {**entry, "choices": weights(entry["choices"])}}
    if isinstance(starts := raw.get("warm_starts"), list):
        found["warm_starts"] = [
            {**start, WEIGHTS: weights(start[WEIGHTS])} if isinstance(start, Mapping) and WEIGHTS in start else start
            for start in starts
        ]
    return found


def _each(value: Any, make: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [_each(item, make) for item in value]
    return make(value) if isinstance(value, str) else value


def weights_at(text: str, base: Path) -> str:
    """What `pretrained` says, a relative file or folder found from `base`; tags and addresses stay as they are."""
    if text.startswith(LOCAL):
        return f"{LOCAL}{_at(text.removeprefix(LOCAL), base)}"
    if "://" in text or text.startswith(PLACES):
        return text
    named = "/" in text or text.startswith("~") or is_weight_file(text)
    return _at(text, base) if named or _is_folder(base, text) else text


def data_at(text: str, base: Path) -> str:
    """A dataset's name, the folder of `folder:DIRECTORY` found from `base`, also where it is corrupted."""
    folder = _folder(text)
    return text.removesuffix(folder) + _at(folder, base) if folder else text


def _folder(name: str) -> str:
    """DIRECTORY of `folder:DIRECTORY` and of `corrupted:CORRUPTION/SEVERITY:folder:DIRECTORY`, or ''."""
    head, _, folder = name.partition(FOLDER_PREFIX)
    return folder if not head or head.startswith(MADE) else ""


def _at(text: str, base: Path) -> str:
    try:
        return str((base.absolute() / Path(text).expanduser()).absolute())
    except RuntimeError:  # ~nobody
        return text


def _is_folder(base: Path, text: str) -> bool:
    try:
        return bool(text) and (base / text).is_dir()
    except (OSError, ValueError):  # too long for a name, or with a null character
        return False


def local_places(canonical: Mapping[str, Any]) -> list[str]:
    """Files and folders of this machine that a study names, by the JSON values of its record."""
    data = canonical["data"]
    names = [data["train"], *data["dev"], *data["confirm"], *data["final"]]
    entry = canonical["search"].get(WEIGHTS)
    weights = [canonical["model"]["pretrained"], *(entry.get("choices", ()) if isinstance(entry, Mapping) else ())]
    places = [folder for name in names if (folder := _folder(name))]
    places += [text.removeprefix(LOCAL) for text in weights if isinstance(text, str)]
    return [place for place in dict.fromkeys(places) if place.startswith("/")]
