"""JSON merge patches on typed objects: what a controller's small patch costs must not grow with the object."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec.structs import FieldInfo, fields, replace

T = TypeVar("T", bound=msgspec.Struct)
_MAPPING = (dict, Mapping)  # the plain case first: asking an abstract class is slow


@cache
def _fields(cls: type[msgspec.Struct]) -> dict[str, FieldInfo]:
    return {f.encode_name: f for f in fields(cls)}


def merged(obj: T, patch: Mapping[str, Any]) -> T:
    """The object with an RFC 7396 patch (camelCase keys) applied; the same object if nothing changes.

    Fields that the type does not have are dropped, as the API server prunes them.

    Raises:
        msgspec.ValidationError: a value has a wrong type.
    """
    changes: dict[str, Any] = {}
    known = _fields(type(obj))
    for name, value in patch.items():
        field = known.get(name)
        if field is None:
            continue
        old = getattr(obj, field.name)
        new = _value(field, old, value)
        if new is not old and new != old:
            changes[field.name] = new
    return replace(obj, **changes) if changes else obj


def _value(field: FieldInfo, old: Any, value: Any) -> Any:
    if value is None:
        return _empty(field)
    if isinstance(value, _MAPPING):
        if isinstance(old, msgspec.Struct):
            return merged(old, value)
        if isinstance(old, _MAPPING):
            return merge_json(old, value)
        value = merge_json({}, value)
    return msgspec.convert(value, field.type)


def _empty(field: FieldInfo) -> Any:
    if field.default_factory is not msgspec.NODEFAULT:
        return field.default_factory()
    if field.default is msgspec.NODEFAULT:
        raise msgspec.ValidationError(f"{field.encode_name}: Required value")
    return field.default


def merge_json(target: Any, patch: Any) -> Any:
    """RFC 7396 on plain JSON."""
    if not isinstance(patch, _MAPPING):
        return patch
    result = dict(target) if isinstance(target, _MAPPING) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge_json(result.get(name), value)
    return result
