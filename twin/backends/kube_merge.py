"""Write what changed into what is stored, so that fields we do not model survive.

A reconciler reads an object, replaces parts of it, and hands it back. The difference between the two is applied to the
server's own text of the version that was read, and that whole is written with its resourceVersion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from twin.model.kinds import to_manifest
from twin.model.meta import Object

_IDENTITIES = ("uid", "type", "name", "key", "ip", "mountPath", "containerPort")


def full_manifest(obj: Object) -> dict[str, Any]:
    """The object's manifest with defaults that are not empty written out.

    msgspec leaves a default out when it is the very same object: a decoded "Initializing" is written, the class's own
    is not. The two must not look like a difference.
    """
    manifest = to_manifest(obj)
    _write_defaults(obj, manifest)
    return manifest


def _write_defaults(value: Any, shown: Any) -> None:
    if isinstance(value, msgspec.Struct) and isinstance(shown, dict):
        for info in msgspec.structs.fields(value):
            part = getattr(value, info.name)
            if isinstance(part, str) and part and part == info.default:
                shown[info.encode_name] = part
            else:
                _write_defaults(part, shown.get(info.encode_name))
    elif isinstance(value, Mapping) and isinstance(shown, dict):
        for name, part in value.items():
            _write_defaults(part, shown.get(name))
    elif isinstance(value, (list, tuple)) and isinstance(shown, (list, tuple)):
        for part, each in zip(value, shown, strict=False):
            _write_defaults(part, each)


def overlay(stored: Any, base: Any, new: Any) -> Any:
    """`stored` with the difference from `base` to `new` applied. All three are JSON-like; none is changed."""
    if isinstance(stored, dict) and isinstance(base, dict) and isinstance(new, dict):
        return _mapping(stored, base, new)
    if all(isinstance(x, (list, tuple)) for x in (stored, base, new)) and len(stored) == len(base):
        return _list(stored, base, new)
    return new


def _mapping(stored: dict[str, Any], base: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    out = dict(stored)
    for name in base:
        if name not in new:
            out.pop(name, None)
    for name, value in new.items():
        if name not in base:
            # Empty parts are not written, so a part we see as absent may hold what we do not model.
            out[name] = overlay(out[name], {}, value) if isinstance(out.get(name), dict) else value
        elif base[name] != value:
            out[name] = overlay(out.get(name), base[name], value)
    return out


def _list(stored: Sequence[Any], base: Sequence[Any], new: Sequence[Any]) -> list[Any]:
    unused = dict.fromkeys(range(len(base)))
    out = []
    for position, item in enumerate(new):
        at = _counterpart(item, position, base, unused)
        if at is None:
            out.append(item)
        else:
            del unused[at]
            out.append(stored[at] if base[at] == item else overlay(stored[at], base[at], item))
    return out


def _counterpart(item: Any, position: int, base: Sequence[Any], unused: dict[int, None]) -> int | None:
    """Which element of the old list this one was: an equal one, else one of the same identity."""
    if position in unused and base[position] == item:
        return position
    for at in unused:
        if base[at] == item:
            return at
    if isinstance(item, dict):
        for at in unused:
            if isinstance(base[at], dict) and _same(base[at], item):
                return at
    return None


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    for name in _IDENTITIES:
        if name in one or name in other:
            return bool(one.get(name) == other.get(name))
    return False
