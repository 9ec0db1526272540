"""Markdown tables, and JSON Schemas as such tables: one for the document, one for each record it is made of."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

Schema = Mapping[str, Any]

_BOUNDS: Final = {"minimum": "at least", "exclusiveMinimum": "more than", "maximum": "at most",
                  "exclusiveMaximum": "less than", "minItems": "at least", "maxItems": "at most",
                  "maxLength": "at most"}
_UNITS: Final = {"minItems": " entries", "maxItems": " entries", "maxLength": " characters"}
_NAMES: Final = {"string": "text", "integer": "whole number", "object": "mapping", "array": "list",
                 "number": "number", "boolean": "true or false"}


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. Cells may hold anything; what would end a cell or begin a tag is escaped."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    lines += ["| " + " | ".join(map(_cell, row)) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    parts = text.replace("|", "\\|").replace("\n", " ").split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;") for i, part in enumerate(parts))


def records(schema: Schema, about: str = "") -> str:
    """The document's own fields, then every record it refers to, by name."""
    parts = [about, fields(schema)]
    for name, part in schema.get("$defs", {}).items():
        if "properties" in part:
            said = one_per_line(part.get("description", ""))
            parts.append(f"## {name}\n\n{said}" + ("\n" if said else "") + fields(part))
        elif part.get("type") == "string" and "enum" in part:
            parts.append(f"## {name}\n\nOne of {', '.join(f'`{v}`' for v in part['enum'])}.\n")
    return "\n".join(p for p in parts if p)


def fields(schema: Schema) -> str:
    required = schema.get("required", [])
    return table(("field", "is", "default", "says"), (
        (f"`{name}`", "; ".join(kind(part)), _default(part, name in required), _says(part))
        for name, part in schema.get("properties", {}).items()))


def kind(schema: Schema) -> Iterator[str]:
    """What a value must be, in words: its type, then its bounds."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        yield f"[{name}](#{name.lower()})"
        return
    for together in ("anyOf", "oneOf"):
        if together in schema:
            yield " or ".join(dict.fromkeys("; ".join(kind(s)) for s in schema[together] if s.get("type") != "null"))
            return
    if "const" in schema:
        yield f"`{schema['const']}`"
    elif "enum" in schema:
        yield ", ".join(f"`{v}`" for v in schema["enum"])
    elif "items" in schema and schema.get("type") == "array":
        yield "list of " + "; ".join(kind(schema["items"]))
    elif "prefixItems" in schema:
        yield f"list of {len(schema['prefixItems'])}: " + ", ".join("; ".join(kind(s)) for s in schema["prefixItems"])
    elif isinstance(schema.get("additionalProperties"), dict):
        yield "mapping to " + "; ".join(kind(schema["additionalProperties"]))
    else:
        yield _NAMES.get(schema.get("type", ""), "anything")
    if "pattern" in schema:
        yield f"`{schema['pattern']}`"
    bounds = _BOUNDS if "prefixItems" not in schema else {}
    for key, word in bounds.items():
        if key in schema and schema[key] < 10**9:
            yield f"{word} {schema[key]:,}{_UNITS.get(key, '')}"


def one_per_line(text: str) -> str:
    """Prose of a docstring with one sentence a line."""
    return re.sub(r"(?<=[^.]\.) (?=[A-Z`0-9])", "\n", " ".join(text.split())) + "\n" if text else ""


def _default(schema: Schema, required: bool) -> str:
    if required:
        return "required"
    value = schema.get("default")
    if value is None or value in ([], {}, ""):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "as there"
    if isinstance(value, str | list):
        return f"`{value}`" if isinstance(value, str) else ", ".join(f"`{v}`" for v in value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value == int(value) else f"{value:g}"


def _says(schema: Schema) -> str:
    """Its description, and that of its alternatives."""
    texts = [schema.get("description", "")]
    if "$ref" not in schema:
        for part in (*schema.get("anyOf", ()), schema.get("items", {})):
            texts.append(part.get("description", ""))
    return "; ".join(dict.fromkeys(" ".join(t.split()) for t in texts if t))
