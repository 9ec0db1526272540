"""What the API server does with a custom resource's content: prune, default, validate, evaluate CEL rules.

Works on JSON-like mappings and on schemas compiled from `twin.model.schema`. Updates are ratcheted as since
Kubernetes 1.33: a mistake in a part that the update leaves as it was is not held against it.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from typing import Any, Final, NamedTuple

from msgspec.structs import fields

from twin.model import fielderror as fe
from twin.model.cel import broken
from twin.model.fielderror import FieldError, Key, Path
from twin.model.meta import Object, ObjectMeta
from twin.model.rules import ABSENT, Cel
from twin.model.schema import Schema, structural

Json = dict[str, Any]


class Node:
    """A compiled schema. `has_rules` and `has_defaults` say whether anything below asks for a look."""

    __slots__ = ("additional", "checks", "default", "format", "has_defaults", "has_rules", "items", "preserve",
                 "properties", "required", "rules", "type", "types")

    def __init__(self, schema: Schema) -> None:
        self.properties = {name: Node(sub) for name, sub in schema.get("properties", {}).items()}
        self.items = Node(schema["items"]) if "items" in schema else None
        self.additional = Node(schema["additionalProperties"]) if "additionalProperties" in schema else None
        self.required: tuple[str, ...] = tuple(schema.get("required", ()))
        self.preserve: bool = schema.get("x-kubernetes-preserve-unknown-fields", False)
        self.default: Any = schema.get("default", ABSENT)
        self.type: str = schema.get("type", "")
        self.format: str = schema["format"] if schema.get("format") in _FORMATS else ""  # the server drops the others
        self.types = ("integer", "string") if schema.get("x-kubernetes-int-or-string") else (self.type,)
        self.checks = checks_of(schema)
        self.rules = tuple(Cel(v["rule"], v["message"]) for v in schema.get("x-kubernetes-validations", ()))
        below = [*self.properties.values(), *(n for n in (self.items, self.additional) if n)]
        self.has_rules: bool = bool(self.rules) or any(n.has_rules for n in below)
        self.has_defaults: bool = self.default is not ABSENT or any(n.has_defaults for n in below)


@cache
def compiled(kind: type[Object]) -> Node:
    """The kind's schema below the root. apiVersion, kind and metadata are the server's own business."""
    node = Node(structural(kind))
    for name in ("apiVersion", "kind", "metadata"):
        node.properties.pop(name, None)
    return node


# --- checks of one value

Check = Callable[[Any, Path], FieldError | None]


def go_regex(pattern: str) -> re.Pattern[str]:
    """A Go (RE2) pattern in Python: ASCII classes, `$` only at the very end, POSIX classes spelled out."""
    pattern = pattern.replace("[[:xdigit:]]", "[0-9A-Fa-f]")
    if pattern.endswith("$"):
        pattern = pattern[:-1] + r"\Z"
    return re.compile(pattern, re.ASCII)


_DATE_TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:?\d\d)\Z", re.ASCII)
_IPV4 = re.compile(r"(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)(\.(25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)){3}\Z", re.ASCII)
_FORMATS: Final[dict[str, Callable[[str], bool]]] = {
    "ipv4": lambda text: _IPV4.match(text) is not None,
    "date-time": lambda text: _DATE_TIME.match(text) is not None,
}


def _in_body(kind: str, path: Path, value: Any, rest: str) -> FieldError:
    return FieldError(kind, path, value, f"{fe.path_text(path)} in body {rest}")


def checks_of(s: Schema) -> tuple[Check, ...]:
    """The checks of one schema node in the order in which the server reports them."""
    out: list[Check] = []
    if "maxLength" in s or "minLength" in s or "pattern" in s:
        out.append(_text_check(s.get("maxLength"), s.get("minLength"), s.get("pattern", "")))
    if s.get("format") in _FORMATS:
        out.append(_format_check(s["format"]))
    if "maximum" in s or "minimum" in s:
        out.append(_number_check(s.get("maximum"), s.get("minimum")))
    if "minItems" in s or "maxItems" in s:
        out.append(_size_check(list, "items", s.get("minItems"), s.get("maxItems")))
    if "enum" in s:
        out.append(_enum_check(tuple(s["enum"])))
    if "minProperties" in s or "maxProperties" in s:
        out.append(_size_check(dict, "properties", s.get("minProperties"), s.get("maxProperties")))
    return tuple(out)


def _text_check(most: int | None, least: int | None, pattern: str) -> Check:
    regex = go_regex(pattern) if pattern else None

    def check(value: Any, path: Path) -> FieldError | None:
        if not isinstance(value, str):
            return None
        if most is not None and len(value) > most:
            return FieldError(fe.TOO_LONG, path, value, f"may not be more than {most} bytes")
        if least is not None and len(value) < least:
            return _in_body(fe.INVALID, path, value, f"should be at least {least} chars long")
        if regex is not None and not regex.search(value):
            return _in_body(fe.INVALID, path, value, f"should match '{pattern}'")
        return None

    return check


def _format_check(name: str) -> Check:
    good = _FORMATS[name]

    def check(value: Any, path: Path) -> FieldError | None:
        if not isinstance(value, str) or good(value):
            return None
        return _in_body(fe.TYPE_INVALID, path, value, f"must be of type {name}: {fe.value_text(value)}")

    return check


def _number_check(most: int | None, least: int | None) -> Check:
    def check(value: Any, path: Path) -> FieldError | None:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return None
        if most is not None and value > most:
            return _in_body(fe.INVALID, path, value, f"should be less than or equal to {most}")
        if least is not None and value < least:
            return _in_body(fe.INVALID, path, value, f"should be greater than or equal to {least}")
        return None

    return check


def _size_check(type_: type[list[Any]] | type[dict[str, Any]], word: str, least: int | None, most: int | None) -> Check:
    def check(value: Any, path: Path) -> FieldError | None:
        if not isinstance(value, type_):
            return None
        if least is not None and len(value) < least:
            return _in_body(fe.INVALID, path, len(value), f"should have at least {least} {word}")
        if most is not None and len(value) > most:
            return FieldError(fe.TOO_MANY, path, len(value), f"must have at most {most} items")
        return None

    return check


def _enum_check(allowed: tuple[str, ...]) -> Check:
    def check(value: Any, path: Path) -> FieldError | None:
        return None if value in allowed else fe.unsupported(path, value, allowed)

    return check


def type_name(value: Any) -> str:
    """The JSON Schema type of a value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, int):
        return "integer"
    if isinstance(value, float):
        return "number"
    if isinstance(value, dict):
        return "object"
    return "string" if isinstance(value, str) else "array"


# --- the four steps


def prune(kind: type[Object], obj: Json, *, nulls: bool = False) -> tuple[Json, list[Path]]:
    """A copy without fields the schema does not know, and where these stood (sorted by text).

    Nulls go as well (no field of ours is nullable, so null is absent), unless `nulls` keeps them for the schema.
    """
    dropped: list[Path] = []
    out: Json = _prune(compiled(kind), obj, (), dropped, nulls, ("apiVersion", "kind", "metadata"))
    meta = out.get("metadata")
    if isinstance(meta, dict):
        dropped += [("metadata", name) for name in meta if name not in _META_FIELDS]
        out["metadata"] = {name: value for name, value in meta.items() if name in _META_FIELDS}
    return out, sorted(dropped, key=fe.path_text)


_META_FIELDS: Final = frozenset(f.encode_name for f in fields(ObjectMeta)) | {"selfLink"}


def _prune(node: Node, value: Any, path: Path, dropped: list[Path], nulls: bool, keep: tuple[str, ...] = ()) -> Any:
    if node.preserve or not isinstance(value, dict | list):
        return copy.deepcopy(value)
    if isinstance(value, list):
        return [_prune(node.items or _NOTHING, item, (*path, i), dropped, nulls) for i, item in enumerate(value)]
    out: Json = {}
    for name, item in value.items():
        sub = node.properties.get(name) or node.additional
        if sub is not None:
            if item is not None or nulls:
                out[name] = _prune(sub, item, (*path, name), dropped, nulls)
        elif name in keep:
            out[name] = copy.deepcopy(item)
        else:
            dropped.append((*path, name))
    return out


_NOTHING: Final = Node({})  # a list where no list belongs: nothing in it is known


def fill_defaults(kind: type[Object], obj: Json) -> None:
    """Put in the schema's defaults where a field is absent, in place. A null where a default exists is replaced."""
    _default(compiled(kind), obj)


def _default(node: Node, value: Any) -> None:
    if not node.has_defaults:
        return
    if isinstance(value, list) and node.items is not None:
        for item in value:
            _default(node.items, item)
    elif isinstance(value, dict):
        for name, sub in node.properties.items():
            if sub.default is not ABSENT and value.get(name) is None:
                value[name] = copy.deepcopy(sub.default)
            if name in value:
                _default(sub, value[name])
        if node.additional is not None:
            for item in value.values():
                _default(node.additional, item)


def schema_errors(kind: type[Object], obj: Json, old: Json | None = None) -> list[FieldError]:
    """What the schema (without CEL) has against this object. Map entries are reported in key order."""
    errors: list[FieldError] = []
    _validate(compiled(kind), obj, ABSENT if old is None else old, (), errors)
    return errors


def _validate(node: Node, value: Any, old: Any, path: Path, errors: list[FieldError]) -> None:
    before = len(errors)
    if path and not _has_type(node, value):
        errors += _type_errors(node, value, path)
    for check in node.checks:
        if error := check(value, path):
            errors.append(error)
    if isinstance(value, dict) and not node.preserve:
        _validate_fields(node, value, old if isinstance(old, dict) else {}, path, errors)
    elif isinstance(value, list) and node.items is not None:
        for i, item in enumerate(value):
            _validate(node.items, item, ABSENT, (*path, i), errors)
    if len(errors) > before and old is not ABSENT and same(value, old):
        del errors[before:]  # ratcheting


def same(a: Any, b: Any) -> bool:
    """Deep equality of JSON, where true is not 1."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b) and isinstance(a, bool) == isinstance(b, bool)


def _has_type(node: Node, value: Any) -> bool:
    """A list where a string with a format belongs is wrong here; a real server stores it, our typed store could not."""
    found = type_name(value)
    return found in node.types or (found == "number" and "integer" in node.types and value.is_integer())


def _type_errors(node: Node, value: Any, path: Path) -> list[FieldError]:
    found, wanted = type_name(value), ",".join(node.types)
    if node.format and not isinstance(value, str | list):  # the format is asked for, and told, instead of the type
        found, wanted = {"integer": "int64", "number": "float64"}.get(found, ""), node.format
    out = [_in_body(fe.TYPE_INVALID, path, found, f'must be of type {wanted}: "{found}"')]
    if len(node.types) > 1:  # int-or-string is an anyOf too, of which the first is told
        where = fe.path_text(path)
        out += [FieldError(fe.INVALID, (), "", f'"{where}" must validate at least one schema (anyOf)'),
                _in_body(fe.TYPE_INVALID, path, found, f'must be of type {node.types[0]}: "{found}"')]
    return out


def _validate_fields(node: Node, value: Json, old: Json, path: Path, errors: list[FieldError]) -> None:
    if node.additional is not None:
        for name in sorted(value):
            _validate(node.additional, value[name], old.get(name, ABSENT), (*path, name), errors)
    for name, sub in node.properties.items():
        if name in value:
            _validate(sub, value[name], old.get(name, ABSENT), (*path, name), errors)
    for name in node.required:
        if name not in value:
            errors.append(FieldError(fe.REQUIRED, (*path, name), None, ""))


def rule_errors(kind: type[Object], obj: Json, old: Json | None = None) -> list[FieldError]:
    """What the CEL rules have against this object; transition rules only where an old value exists."""
    errors: list[FieldError] = []
    _rules(compiled(kind), obj, ABSENT if old is None else old, (), errors)
    return errors


def has_rules(kind: type[Object]) -> bool:
    return compiled(kind).has_rules


def _rules(node: Node, value: Any, old: Any, path: Path, errors: list[FieldError]) -> None:
    if not node.has_rules:
        return
    for rule in node.rules:
        if rule.transition and old is ABSENT:
            continue
        if not rule.transition and old is not ABSENT and same(value, old):
            continue  # ratcheting: it was so before
        if node.type == "integer" and isinstance(value, float):  # 2.0 passes the schema and not CEL's types
            text = f"invalid data, expected int, got float64 evaluating rule: {rule.message}"
        else:
            text = broken(rule, value, None if old is ABSENT else old)
        if text:
            errors.append(FieldError(fe.RULE, path, node.type, text))
    if isinstance(value, dict):
        before = old if isinstance(old, dict) else {}
        for name in sorted(value):
            sub = node.properties.get(name)
            if sub is not None:
                _rules(sub, value[name], before.get(name, ABSENT), (*path, name), errors)
            elif node.additional is not None:
                _rules(node.additional, value[name], before.get(name, ABSENT), (*path, Key(name)), errors)
    elif isinstance(value, list) and node.items is not None:
        for i, item in enumerate(value):  # lists are atomic: their items have no old value
            _rules(node.items, item, ABSENT, (*path, i), errors)


# --- for people


class Violation(NamedTuple):
    """One mistake in a manifest, for `FILE:LINE:COL: OBJECT: FIELD: RULE (got VALUE)`. `value` is ABSENT if none."""

    path: tuple[str | int, ...]
    rule: str
    value: Any


def violations(kind: type[Object], manifest: Json) -> list[Violation]:
    """Everything the schema and its rules refuse in a new object of this kind, unknown fields included, in path order.

    Never raises, whatever the manifest holds.
    """
    obj, unknown = prune(kind, manifest)
    out = [Violation(_plain(path), "unknown field", _at(manifest, path)) for path in unknown]
    fill_defaults(kind, obj)
    errors = schema_errors(kind, obj)
    if not fe.blocks_rules(errors):
        errors += rule_errors(kind, obj)
    out += [Violation(_plain(e.path), _rule_text(e), _at(obj, e.path)) for e in errors]
    return sorted(out, key=lambda v: [str(step) for step in v.path])


def _plain(path: Path) -> tuple[str | int, ...]:
    return tuple(step.key if isinstance(step, Key) else step for step in path)


def _at(obj: Any, path: Path) -> Any:
    for step in _plain(path):
        try:
            obj = obj[step]
        except (KeyError, IndexError, TypeError):
            return ABSENT
    return obj


def _rule_text(error: FieldError) -> str:
    if error.kind == fe.REQUIRED:
        return "required"
    return error.detail.removeprefix(f"{fe.path_text(error.path)} in body ")
