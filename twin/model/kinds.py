"""The table of all kinds, and the way between manifests (JSON-like mappings) and objects."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from twin.model import core, provisioning, services
from twin.model.meta import Object, ObjectMeta, Unstructured

KINDS: Final[dict[str, type[Object]]] = {k.KIND: k for k in (*provisioning.KINDS, *core.KINDS, *services.KINDS)}


def kind_of(api_version: str, kind: str) -> type[Object]:
    """The class for a manifest's apiVersion and kind; `Unstructured` when we have none."""
    cls = KINDS.get(kind)
    return cls if cls is not None and cls.api_version() == api_version else Unstructured


def from_manifest(manifest: dict[str, Any]) -> Object:
    """Decode a manifest.

    Raises:
        msgspec.ValidationError: a field has a wrong type; the message ends with its path (`$.spec.maxNodes`).
    """
    cls = kind_of(manifest.get("apiVersion", ""), manifest.get("kind", ""))
    if cls is Unstructured:
        content = {k: v for k, v in manifest.items() if k not in ("apiVersion", "kind", "metadata")}
        meta = msgspec.convert(manifest.get("metadata", {}), ObjectMeta)
        return Unstructured(metadata=meta, kind=manifest.get("kind", ""),
                            group_version=manifest.get("apiVersion", ""), content=content)
    return msgspec.convert(manifest, cls)


def to_manifest(obj: Object) -> dict[str, Any]:
    """The mapping that `kubectl get -o json` would show: plain JSON values, so lists, never tuples."""
    if isinstance(obj, Unstructured):
        return {"apiVersion": obj.group_version, "kind": obj.kind,
                "metadata": _plain(obj.metadata), **obj.content}
    return {"apiVersion": obj.api_version(), "kind": obj.KIND, **_plain(obj)}


def _plain(value: msgspec.Struct) -> dict[str, Any]:
    mapping: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return mapping
