"""JSON merge patches on typed objects: what a controller's small patch costs must not grow with the object."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
from msgspec.structs import FieldInfo, fields, replace

from twin.model.schema import unwrap

T = TypeVar("T", bound=msgspec.Struct)
_MAPPING = (dict, Mapping)  # the plain case first: asking an abstract class is slow
_PLAIN = frozenset((str, int, bool, float, list, tuple))


@cache
def _fields(cls: type[msgspec.Struct]) -> dict[str, tuple[FieldInfo, Any]]:
    """The fields by their name in JSON; beside each the class whose values it takes as they are, or None."""
    return {f.encode_name: (f, bare if (bare := unwrap(f.type)[0]) in (str, int, bool) else None) for f in fields(cls)}


def merged(obj: T, patch: Mapping[str, Any]) -> T:
    """The object with an RFC 7396 patch (camelCase keys) applied; the same object if nothing changes.

    Fields that the type does not have are dropped, as the API server prunes them.

    Raises:
        msgspec.ValidationError: a value has a wrong type.
    """
    changes: dict[str, Any] = {}
    known = _fields(type(obj))
    for name, value in patch.items():
        if name not in known:
            continue
        field, plain = known[name]
        old = getattr(obj, field.name)
        if value is None:
            new = _empty(field)
        elif value.__class__ is plain:
            new = value
        elif not isinstance(value, _MAPPING):
            new = msgspec.convert(value, field.type)
        elif isinstance(old, msgspec.Struct):
            new = merged(old, value)
        elif isinstance(old, _MAPPING):
            new = merge_json(old, value)
        else:
            new = msgspec.convert(merge_json({}, value), field.type)
        if new is not old and new != old:
            changes[field.name] = new
    return replace(obj, **changes) if changes else obj


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
        elif value.__class__ in _PLAIN:
            result[name] = value
        else:
            result[name] = merge_json(result.get(name), value)
    return result
