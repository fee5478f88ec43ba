"""What a field of a user's file means: its words, range, default, paper, and what is below it, all from the schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import Any

import yaml

from study.begin.schema import KINDS, schema_of
from study.begin.template import Dumper
from study.errors import UserError
from study.spec.starts import at_path
from trainers.errors import nearest_path
from trainers.objectives.presets import PRESETS
from trainers.schema.units import eps_label

Schema = Mapping[str, Any]
ANY = "*"  # in paths: whatever key the writer chooses


@dataclass(frozen=True)
class Explained:
    """One field. `of`: the alternative that it belongs to, such as a method; `fields`: what may stand below it.

    `about`: what the record around it says, with its paper; `published`: the presets' values. `default`: none where it
    is required, or is a record of its own defaults.
    """

    path: str
    of: str
    meaning: str
    type: str
    required: bool
    about: str
    default: Any = None
    has_default: bool = False
    fields: dict[str, str] = field(default_factory=dict)
    alternatives: tuple[str, ...] = ()
    published: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def explain(path: str) -> list[Explained]:
    """Every field that a dotted path may mean, several where alternatives have one of that name.

    The first part may be a kind of file (`suite.attacks`); without, the path is a study file's. "" is the study file.
    `UserError` with the nearest path for one that does not exist.
    """
    kind, keys = _split(path)
    found = list(_at(_root(kind), keys, _Place(kind)))
    if not found:
        known = list(dict.fromkeys(each.path for each in every_field(kind)))
        close = nearest_path(path, known)
        raise UserError(f"{path}: no such field of a {kind} file" + (f"; did you mean {close[0]!r}?" if close else ""))
    return found


def every_field(kind: str) -> Iterator[Explained]:
    """All of a kind of file, records before what is in them."""
    yield from _below(_root(kind), _Place(kind))


@cache
def _root(kind: str) -> Schema:
    """The schema with every record in the place that refers to it; `doc` is what the record says of itself."""
    whole = schema_of(kind)

    def full(node: Any) -> Any:
        if isinstance(node, list):
            return [full(each) for each in node]
        if not isinstance(node, Mapping):
            return node
        if "$ref" in node:
            record = whole["$defs"][node["$ref"].rpartition("/")[2]]
            beside = {key: value for key, value in node.items() if key != "$ref"}
            return full({**record, **beside, "doc": record.get("description", "")})
        return {key: full(value) for key, value in node.items() if key != "$defs"}

    found: Schema = full(whole)
    return found


@dataclass(frozen=True)
class _Place:
    """How a field was reached. `of`: among several records, the name of its own; `about`: what that says of itself."""

    kind: str
    path: str = ""
    of: str = ""
    about: str = ""
    required: bool = False

    def among(self, record: Schema, records: Sequence[Schema]) -> _Place:
        return replace(self, of=_label(record) if len(records) > 1 else self.of, about=_doc(record))

    def inside(self, name: str, record: Schema) -> _Place:
        path, required = f"{self.path}.{name}".lstrip("."), name in record.get("required", ())
        return replace(self, path=path, required=required)

    @property
    def shown(self) -> str:
        """The path as it is asked for."""
        return self.path if self.kind == "study" else f"{self.kind}.{self.path}".rstrip(".")


def _split(path: str) -> tuple[str, list[str]]:
    keys = [key for key in path.replace("[", ".").replace("]", "").split(".") if key and not key.isdigit()]
    return (keys[0], keys[1:]) if keys and keys[0] in KINDS else ("study", keys)


def _at(schema: Schema, keys: list[str], place: _Place) -> Iterator[Explained]:
    if not keys:
        yield _explained(schema, place)
        return
    longest = ".".join(keys)  # the paths of `search` are keys with dots
    records = _records(schema)
    for record in records:
        fields, here = record.get("properties", {}), place.among(record, records)
        if longest in fields:
            yield _explained(fields[longest], here.inside(longest, record))
        elif keys[0] in fields:
            yield from _at(fields[keys[0]], keys[1:], here.inside(keys[0], record))
        elif keys[0] == _label(record):
            yield from _at(record, keys[1:], here)
        elif isinstance(other := record.get("additionalProperties"), Mapping):
            yield from _at(other, keys[1:], here.inside(ANY, record))


def _below(schema: Schema, place: _Place) -> Iterator[Explained]:
    records = _records(schema)
    for record in records:
        here = place.among(record, records)
        for name, inner in record.get("properties", {}).items():
            yield _explained(inner, here.inside(name, record))
            if "." not in name:
                yield from _below(inner, here.inside(name, record))
        if isinstance(other := record.get("additionalProperties"), Mapping):
            yield from _below(other, here.inside(ANY, record))


def _records(schema: Schema) -> list[Schema]:
    """The records that may stand here: alternatives, and items of a list, which is written without its brackets too."""
    if schema.get("type") == "object":
        return [schema]
    inner = [*schema.get("oneOf", ()), *schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]
    found: list[Schema] = []
    for each in inner:
        found += [record for record in _records(each) if record not in found]
    return found


def _label(record: Schema) -> str:
    return str(record.get("properties", {}).get("name", {}).get("const", ""))


def _doc(record: Schema) -> str:
    return str(record.get("doc", record.get("description", "")))


def _explained(schema: Schema, place: _Place) -> Explained:
    records = _records(schema)
    labels = tuple(filter(None, map(_label, records)))
    below = {
        name: inner.get("description", "") for each in records for name, inner in each.get("properties", {}).items()
    }
    itself = len(records) == 1 and records[0] is schema
    said = schema.get("description", "") or (f"which one it is: `name: {schema['const']}`" if "const" in schema else "")
    meaning, _, rest = said.partition("\n\n")
    about = _doc(schema) if itself and "doc" in schema else rest if itself else place.about.partition("\n\n")[0]
    return Explained(
        path=place.shown, of=place.of, meaning=meaning, type=_type(schema), required=place.required, about=about,
        default=schema.get("default"), has_default="default" in schema, fields=below,
        alternatives=labels if len(labels) > 1 else (), published=_published(place),
    )  # fmt: skip


def _published(place: _Place) -> dict[str, Any]:
    """What the presets say at this place, where they say anything."""
    found: dict[str, Any] = {}
    for name, preset in PRESETS.items() if place.kind == "study" and place.path else ():
        at = at_path(preset, place.path)
        if at is not None and not (place.path.startswith("method") and preset["method"]["name"] != place.of):
            found[name] = at
    return found


WORDS = {"number": "number", "integer": "whole number", "boolean": "true or false", "string": "text"}


def _type(field: Schema) -> str:
    """Kinds and limits in words."""
    kind, forms = field.get("type"), [*field.get("anyOf", ()), *field.get("oneOf", ())]
    if kind == "object":
        names = ", ".join(field.get("properties", ())) or "keys of your own"
        return f"{{{names if len(names) < 60 else names[:57] + '...'}}}"
    if forms:
        labels = [_label(each) for each in forms]
        return " or ".join([f"one of {', '.join(labels)}"] if all(labels) else dict.fromkeys(map(_type, forms)))
    if "enum" in field or "const" in field:
        return " or ".join(map(str, field.get("enum", [field.get("const")])))
    if kind == "array":
        least = f"{field['minItems']} or more: " if field.get("minItems") else ""
        return f"list of {least}{_type(field.get('items', {}))}"
    text = (
        "number or fraction such as 4/255" if isinstance(kind, list) else WORDS.get(str(kind), str(kind or "anything"))
    )
    if "pattern" in field and kind == "string":
        text += f" like {field['pattern']}"
    ends = [_end(field, "inimum", "from", "above"), _end(field, "aximum", "to", "below")]
    return ", ".join(filter(None, [text, " ".join(filter(None, ends))]))


def _end(field: Schema, which: str, including: str, without: str) -> str:
    for key, word in ((f"m{which}", including), (f"exclusiveM{which}", without)):
        if key in field:
            return f"{word} {field[key]:g}"
    return ""


def written(path: str, value: Any) -> str:
    """A value as a file has it at a path: radii as fractions."""
    return yaml.dump(_readable(path, value), Dumper=Dumper, default_flow_style=True, width=1000, sort_keys=False).split(
        "\n...")[0].strip()  # fmt: skip


def _readable(path: str, value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _readable(key, each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_readable(path, each) for each in value]
    length = isinstance(value, float) and path.rpartition(".")[2] in ("eps", "step_size")
    return eps_label(value) if length else value
