"""What all files that users write are made of: records without unknown fields, numbers, durations and sizes."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from twin.model import units


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


def _guarded(schema: Any) -> Any:
    """A pydantic schema whose numbers are not bools."""
    if isinstance(schema, list):
        return [_guarded(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("int", "float"):
        return core_schema.no_info_before_validator_function(_number, schema)
    return {name: part if name in ("metadata", "default") else _guarded(part) for name, part in schema.items()}


class Edge(BaseModel):
    """A record of a file. No number of it is `true`, which Python and so pydantic take for 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[BaseModel], handler: GetCoreSchemaHandler) -> CoreSchema:
        found: CoreSchema = _guarded(handler(source))
        return found


Seconds = Annotated[float, BeforeValidator(units.seconds), Field(ge=0, json_schema_extra={
    "description": "Seconds, or text such as 90s, 15m, 2h30m"})]
Bytes = Annotated[int, BeforeValidator(units.size_bytes), Field(ge=1, json_schema_extra={
    "description": "Bytes, or text such as 1.4Gi, 1500MB"})]
BytesPerSecond = Annotated[float, BeforeValidator(units.size_bytes), Field(ge=1, json_schema_extra={
    "description": "Bytes per second, or text such as 1.25GB"})]
