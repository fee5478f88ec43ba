"""What users see and type: the help of every command, the fields of every file that they write, and Python's names.

    python tests/bench/surface.py --write    # the lists anew, after a change that is meant
    python tests/bench/surface.py            # compares, and names every command, field and name that differs

Help is printed at a fixed width. A field is a line, `path: type default constraints`, in the order of the paths; names
of classes and titles are left out, since users do not see them, and so are descriptions, which are documentation. A
name is a line, too: what is called with its signature, a record's field with its type.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click
from click.testing import CliRunner
from pydantic import BaseModel

from study.cli.main import main as agft
from study.comparison.file import OWN, PER_METHOD, STUDY_KEYS
from study.spec.config import StudyConfig
from trainers.objectives.presets import PRESETS
from trainers.schema.suite import Suite

GOLDEN = Path(__file__).parents[1] / "golden"
COMMANDS, FIELDS, NAMES = (GOLDEN / f"{kind}.txt" for kind in ("commands", "fields", "names"))
# What people's own code and packages may import: a module's `__all__`, or these of its names.
PYTHON: dict[str, tuple[str, ...] | None] = {
    "study.api": None,
    "study.testing": ("sampler_contract", "selection_contract", "stopping_contract"),
    "trainers.testing.attacks": ("attack_contract", "training_attack_contract"),
    "trainers.testing.checks": ("check_contract",),
    "trainers.testing.datasets": ("dataset_contract",),
    "trainers.testing.methods": ("method_contract",),
}
WIDTH = 100
MARK = "### "
FILES: dict[str, type[BaseModel]] = {"study file": StudyConfig, "suite file": Suite}

# --- commands --------------------------------------------------------------------------------------------------------


def commands() -> dict[str, str]:
    """Help by command, `agft` and every one below it."""
    return dict(_helps(agft, ()))


def _helps(command: click.Command, path: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    shown = CliRunner().invoke(agft, [*path, "--help"], prog_name="agft", terminal_width=WIDTH, max_content_width=WIDTH)
    assert shown.exit_code == 0, (path, shown.output)
    yield " ".join(("agft", *path)), shown.output.rstrip()
    if isinstance(command, click.Group):
        for name, inner in sorted(command.commands.items()):
            yield from _helps(inner, (*path, name))


def to_text(helps: Mapping[str, str]) -> str:
    return "\n\n".join(f"{MARK}{command}\n{text}" for command, text in helps.items()) + "\n"


def from_text(text: str) -> dict[str, str]:
    parts = (part.partition("\n") for part in ("\n" + text).split(f"\n{MARK}")[1:])
    return {command: body.rstrip() for command, _, body in parts}


# --- fields ----------------------------------------------------------------------------------------------------------

UNSEEN = ("title", "description", "discriminator", "examples")
INNER = ("properties", "required", "items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "allOf", "$defs")


def fields() -> list[str]:
    """A line a field of every file."""
    found = [f"{kind} {line}" for kind, model in FILES.items() for line in schema_lines(model.model_json_schema())]
    keys = {"": (*OWN, *STUDY_KEYS), "methods.LABEL.": PER_METHOD}  # what they hold is a study file's
    found += [f"compare file {prefix}{name}: key" for prefix, names in keys.items() for name in names]
    return sorted([*found, f"study file preset: one of {json.dumps(list(PRESETS))}"])  # worked in before the schema


def schema_lines(schema: Mapping[str, Any]) -> list[str]:
    """A JSON schema as lines. Of a union, each alternative: a record by its `name` where it has one."""
    return sorted(set(_lines(schema, "", schema.get("$defs", {}))))


def _lines(schema: Mapping[str, Any], path: str, records: Mapping[str, Any], required: bool = False) -> Iterator[str]:
    schema = _resolved(schema, records)
    branches = [_resolved(each, records) for each in schema.get("anyOf", schema.get("oneOf", ()))]
    if path:
        yield f"{path}: {_described(schema, branches, required)}"
    for branch in branches:
        if branch.get("type") in ("object", "array"):
            label = branch.get("properties", {}).get("name", {}).get("const")
            yield from _inside(branch, f"{path}<{label}>" if label else path, records)
    yield from _inside(schema, path, records)


def _inside(schema: Mapping[str, Any], path: str, records: Mapping[str, Any]) -> Iterator[str]:
    for name, field in schema.get("properties", {}).items():
        yield from _lines(field, f"{path}.{name}".lstrip("."), records, name in schema.get("required", ()))
    if schema.get("type") == "object":
        other = schema.get("additionalProperties", True)
        if isinstance(other, Mapping):
            yield from _lines(other, f"{path}.*", records)
        else:
            yield f"{path or '(file)'}: {'open to any key' if other else 'closed'}"
    if isinstance(schema.get("items"), Mapping):
        yield from _lines(schema["items"], f"{path}[]", records)
    for place, item in enumerate(schema.get("prefixItems", ())):
        yield from _lines(item, f"{path}[{place}]", records)


def _resolved(schema: Mapping[str, Any], records: Mapping[str, Any]) -> Mapping[str, Any]:
    """With the record that it refers to in its place; what stands beside the reference counts."""
    while "$ref" in schema:
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        schema = {**records[schema["$ref"].rpartition("/")[2]], **beside}
    return schema


def _described(schema: Mapping[str, Any], branches: list[Mapping[str, Any]], required: bool) -> str:
    """Type, default and constraints."""
    kinds = " | ".join(sorted(_plain(branch) for branch in branches)) if branches else _plain(schema)
    default = f" default={json.dumps(schema['default'], sort_keys=True)}" if "default" in schema else ""
    return f"{kinds}{default}{' required' if required else ''}"


def _plain(schema: Mapping[str, Any]) -> str:
    """Type and constraints of what is no union."""
    hidden = {*UNSEEN, *INNER, "type", "default"}
    rules = [f"{key}={json.dumps(value, sort_keys=True)}" for key, value in sorted(schema.items()) if key not in hidden]
    name = schema.get("properties", {}).get("name", {}).get("const")
    return " ".join(
        [schema.get("type", "union" if "anyOf" in schema else "any") + (f" {name}" if name else ""), *rules]
    )


# --- names of Python -------------------------------------------------------------------------------------------------


def names() -> list[str]:
    """A line a name: functions, classes, and what is public in these classes."""
    found: list[str] = []
    for module, chosen in PYTHON.items():
        loaded = importlib.import_module(module)
        for name in chosen or loaded.__all__:
            found += _named(f"{module}.{name}", getattr(loaded, name))
    return sorted(found)


def _named(path: str, value: Any) -> Iterator[str]:
    if not inspect.isclass(value):
        yield f"{path}{_signature(value)}"
        return
    yield f"{path}: {'exception' if issubclass(value, BaseException) else 'class'}"
    types = inspect.get_annotations(value)
    for name in sorted({*vars(value), *types}):
        if name.startswith(("_", "model_config")):
            continue
        member = vars(value).get(name)
        if isinstance(member, property):
            yield f"{path}.{name}: {inspect.get_annotations(member.fget)['return']}"
        elif isinstance(member, (classmethod, staticmethod)) or inspect.isfunction(member):
            yield f"{path}.{name}{_signature(getattr(value, name))}"
        else:
            yield f"{path}.{name}: {types.get(name, type(member).__name__)}"


def _signature(function: Any) -> str:
    """Annotations as they are written, not what they mean."""
    signature = inspect.signature(function)
    given = [each.replace(annotation=inspect.Parameter.empty) for each in signature.parameters.values()
             if each.name != "self"]  # fmt: skip
    end = "" if signature.return_annotation is signature.empty else f" -> {signature.return_annotation}"
    return f"{signature.replace(parameters=given, return_annotation=signature.empty)}{end}"


# --- the lists -------------------------------------------------------------------------------------------------------


def command_differences(stored: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """By command: that it is new or gone, or the lines of its help that changed."""
    lines = []
    for command in sorted({*stored, *found}):
        if command not in found or command not in stored:
            lines.append(f"{command}: {'is gone' if command in stored else 'is new'}")
        elif stored[command] != found[command]:
            pair = (stored[command].splitlines(), found[command].splitlines())
            diff = list(difflib.unified_diff(*pair, lineterm="", n=0))[2:]
            changed = [line for line in diff if not line.startswith("@@")]
            lines.append("\n".join([f"{command}: another help", *changed]))
    return lines


def field_differences(stored: list[str], found: list[str]) -> list[str]:
    """`- line` for what is no longer so, `+ line` for what was not so before."""
    return [f"- {line}" for line in stored if line not in found] + [f"+ {line}" for line in found if line not in stored]


def stored_commands() -> dict[str, str]:
    return from_text(COMMANDS.read_text(encoding="utf-8"))


def stored_fields() -> list[str]:
    return FIELDS.read_text(encoding="utf-8").splitlines()


def stored_names() -> list[str]:
    return NAMES.read_text(encoding="utf-8").splitlines()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="write the lists instead of comparing with them")
    if parser.parse_args().write:
        COMMANDS.write_text(to_text(commands()), encoding="utf-8")
        FIELDS.write_text("\n".join(fields()) + "\n", encoding="utf-8")
        NAMES.write_text("\n".join(names()) + "\n", encoding="utf-8")
        return
    found = command_differences(stored_commands(), commands()) + field_differences(stored_fields(), fields())
    found += field_differences(stored_names(), names())
    print("\n".join(found) or "no difference")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
