"""Fields that name a row of a table: `In`, a name; `OneOf`, a record that its `name` chooses. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from trainers.errors import nearest, no_such
from trainers.table import Table


def record_rule(base: type[BaseModel]) -> Callable[[str, Any], str]:
    """For a `Table` of classes of records: what keeps an object from being one of that name."""

    def wrong(name: str, row: Any) -> str:
        if not isinstance(row, type) or not issubclass(row, base):
            return f"must be a subclass of {base.__module__}.{base.__name__}"
        default = row.model_fields["name"].default
        return "" if default == name else f"its field `name` must be the literal {name!r}, not {default!r}"

    return wrong


def _unknown(table: Table[Any], name: object) -> PydanticCustomError:
    return PydanticCustomError("unknown_name", no_such(table.kind, name, table))


def _faults(row: type[BaseModel], given: Mapping[str, Any]) -> list[InitErrorDetails]:
    try:
        row.model_validate(given)
    except ValidationError as error:
        return [
            {"type": PydanticCustomError(each["type"], each["msg"]), "loc": each["loc"], "input": each["input"]}
            for each in error.errors()
        ]
    return []


@dataclass(frozen=True, eq=False)
class In:
    """In `Annotated[str, In(TABLE)]`: a name of the table, those of installed packages included."""

    table: Table[Any]

    def _check(self, name: str) -> str:
        if name not in self.table:
            raise _unknown(self.table, name)
        return name

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, core_schema.str_schema())

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        names = list(self.table)
        return {"type": "string", "enum": names} if len(names) > 1 else {"type": "string", "const": names[0]}


@dataclass(frozen=True, eq=False)
class OneOf:
    """In `Annotated[Base, OneOf(TABLE)]`: a record of one of the table's classes, told apart by `name`."""

    table: Table[Any]

    def _read(self, given: Any) -> BaseModel:
        if isinstance(given, BaseModel):
            row = self.table.get(getattr(given, "name", ""))
            if row is not None and isinstance(given, row):
                return given
        if not isinstance(given, Mapping):
            raise PydanticCustomError("model_type", "Input should be a valid dictionary")
        name = given.get("name")
        row = self.meant(name)
        if row is not None and name in self.table:
            found: BaseModel = row.model_validate(given)
            return found
        missing = f"is required; known: {', '.join(self.table)}"
        kind = _unknown(self.table, name) if "name" in given else PydanticCustomError("missing_name", missing)
        wrong: list[InitErrorDetails] = [{"type": kind, "loc": ("name",), "input": name}]
        if row is not None:  # what else is wrong with the block, read as the one that it was probably meant to be
            wrong += _faults(row, {**given, "name": row.model_fields["name"].default})
        raise ValidationError.from_exception_data("name", wrong)

    def meant(self, name: object) -> type[BaseModel] | None:
        """The class of that name, or of the one most like it; None where there is none."""
        if not isinstance(name, str):
            return None
        close = [name] if name in self.table else nearest(name, self.table, count=1)
        row: type[BaseModel] | None = self.table[close[0]] if close else None
        return row

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        as_it_is = core_schema.simple_ser_schema("any")
        return core_schema.no_info_plain_validator_function(self._read, serialization=as_it_is)

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        forms = [handler.resolve_ref_schema(handler(row.__pydantic_core_schema__)) for row in self.table.values()]
        return {"oneOf": [{**form, "required": ["name", *form.get("required", ())]} for form in forms]}
