"""JSON Schema of the files that users write, made from the records that read them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from study.spec.config import StudyConfig
from study.spec.promotion import GatesConfig
from study.spec.space import known_paths
from trainers.objectives import METHODS
from trainers.objectives.presets import PRESETS
from trainers.schema.suite import Suite

DIALECT = "https://json-schema.org/draft/2020-12/schema"
FRACTION = r"^\s*[-+0-9.eE]+\s*(/\s*[-+0-9.eE]+\s*)?$"
LIMITS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
NUMBER = {"type": ["number", "string"], "pattern": FRACTION}
CONDITION = {"type": "object", "description": "searched where another path has one of these values"}
# What `search` and a compare file hold is checked by code of their own, so their forms are written here.
RANGE = {
    "low": {**NUMBER, "description": "least value"},
    "high": {**NUMBER, "description": "largest value"},
    "log": {"type": "boolean", "description": "sampled evenly in the logarithm"},
    "step": {**NUMBER, "description": "distance of the values that are tried"},
    "choices": {"type": "array", "minItems": 1, "description": "the values that are tried, instead of a range"},
}
DIMENSION: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **RANGE,
        **{name: {"type": "object", "properties": RANGE, "additionalProperties": False, "description": text}
           for name, text in {
               "of_model": "range or choices as multiples of the model's own logit scale",
               "of_eps": "range or choices as multiples of the attack's eps",
               "steps": "range or choices in updates",
           }.items()},
        "when": CONDITION,
    },
}  # fmt: skip


def study_schema() -> dict[str, Any]:
    """Of a study file, as it is written: with `preset`, fractions, lists of one, and the paths of `search`."""
    schema = _of(StudyConfig)
    fields = schema["properties"]
    fields["preset"] = {
        "enum": list(PRESETS),
        "description": "a published recipe for method, attack and train; the file's own values go over it",
    }
    paths = {path: field for name in METHODS for path, (field, _) in known_paths(name).items()}
    told = {path: field.description or "" for path, field in paths.items()}
    told["method.name"] = "which of method and alternatives; searched by itself"
    one = {"$ref": "#/$defs/Dimension"}
    fields["search"] |= {
        "properties": {path: {**one, "description": text} for path, text in told.items()},
        "additionalProperties": False,
    }
    schema["$defs"]["Dimension"] = DIMENSION
    schema["required"] = [name for name in schema["required"] if name != "method"]
    return schema | {"anyOf": [{"required": ["method"]}, {"required": ["preset"]}]}


def comparison_schema() -> dict[str, Any]:
    """Of a compare file: a study file's keys, with methods and seeds."""
    schema = study_schema()
    fields = schema["properties"]
    own = {name: fields[name] for name in ("method", "search", "attack", "warm_starts")}
    del fields["method"], fields["preset"], schema["anyOf"]
    fields["methods"] = {
        "type": "object", "description": "label -> method, each with its own search",
        "additionalProperties": {"type": "object", "properties": own, "required": ["method"],
                                 "additionalProperties": False, "description": "one method and what it searches"},
    }  # fmt: skip
    fields["seeds"] = {
        "type": "array", "items": {"type": "integer"},
        "description": "seeds of the repetitions of each method's best trial",
    }  # fmt: skip
    fields["reference"] = {"type": "string", "description": "label of the method that differences are taken to"}
    return schema | {"required": [*schema["required"], "methods", "seeds"]}


KINDS: dict[str, Callable[[], dict[str, Any]]] = {
    "study": study_schema,
    "compare": comparison_schema,
    "suite": lambda: _of(Suite),
    "policy": lambda: _of(GatesConfig),
}
"""Kinds of files: studies, comparisons, suites of an evaluation, gates of a promotion."""


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON Schema of a kind of file."""
    return {"$schema": DIALECT, "title": f"agft {kind} file", **KINDS[kind]()}


def kept_schema(kind: str, home: Path) -> Path:
    """A file with the schema in the home, written anew where it differs: what an editor is pointed at."""
    path = home / "schemas" / f"{kind}.json"
    text = json.dumps(schema_of(kind), indent=1) + "\n"
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return path


def editor_line(path: Path) -> str:
    """The first line of a YAML file, by which the YAML language server of an editor finds a schema."""
    return f"# yaml-language-server: $schema={path.absolute().as_uri()}"


def _of(model: type[BaseModel]) -> dict[str, Any]:
    found: dict[str, Any] = _written(model.model_json_schema())
    return found


def _written(node: Any) -> Any:
    """A schema of the record's values as one of what may be written for them."""
    if isinstance(node, list):
        return [_written(each) for each in node]
    if not isinstance(node, Mapping):
        return node
    plain = {key: value for key, value in node.items() if key in ("const", "default", "enum", "description")}
    node = {LIMITS.get(key, key): plain.get(key, _written(value)) for key, value in _untitled(node)}
    if node.pop("fraction", False):
        node |= NUMBER
    if node.pop("alone", False):
        above = {key: node.pop(key) for key in ("default", "description") if key in node}
        node = {**above, "anyOf": [node["items"], node]}
    return node


def _untitled(node: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Titles are names of ours. A property may be called so, and is then a schema."""
    return ((key, value) for key, value in node.items() if key != "title" or isinstance(value, Mapping))
